package chaos_test

import (
	"os"
	"testing"

	"github.com/pgrepmgr/repmgr/internal/chaos"
)

// The test binary is also the program of "make chaos": its first argument is
// then "chaos". See doc.go.
func TestMain(m *testing.M) {
	switch {
	case chaos.Stage() == "probe":
		chaos.RunProbe()
	case chaos.Stage() == "init":
		chaos.RunInit()
	case len(os.Args) > 1 && os.Args[1] == "chaos":
		os.Exit(chaos.Main(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}
