package chaos_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

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

// programs builds repmgr and repmgrd.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", dir+"/", "github.com/pgrepmgr/repmgr/cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// The short form of "make chaos": one cluster, the faults that matter most, each once.
func TestShort(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if os.Getuid() != 0 {
		t.Skip("not root: network namespaces and the servers' OS user need it; TestPlain runs instead")
	}
	if err := chaos.CanIsolate(); err != nil {
		t.Skip(err)
	}
	run(t, "-each", "-topology", "3", "-mode", "quorum", "-only", "kill server;cut primary off;stop server under 1 s;clean shutdown of primary")
}

// With off it is the fence that counts. The seed is one whose servers are screened.
func TestShortOff(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 || chaos.CanIsolate() != nil {
		t.Skip("as TestShort")
	}
	run(t, "-each", "-topology", "3", "-mode", "off", "-seed", "2", "-only", "cut primary off;power off primary")
}

// Without namespaces there are the faults of processes.
func TestPlain(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if os.Getuid() == 0 && chaos.CanIsolate() == nil {
		t.Skip("TestShort does more")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go tool is not in PATH")
	}
	run(t, "-plain", "-each", "-topology", "3", "-mode", "quorum", "-only", "kill server;stop server under 1 s;clean shutdown of primary")
}

func run(t *testing.T, args ...string) {
	t.Helper()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"chaos", "-v", "-bin", programs(t), "-out", out}, args...)...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		for _, log := range logs(out) {
			t.Log(log)
		}
	}
	require.NoError(t, err, "%s", text)
	require.FileExists(t, filepath.Join(out, "report.md"))
	svg, err := os.ReadFile(filepath.Join(out, "outages.svg"))
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(svg, []byte("<svg ")))
}

// logs are the ends of what was kept of a fault that fell short.
func logs(dir string) (all []string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "findings", "*", "*"))
	for _, path := range paths {
		b, _ := os.ReadFile(path)
		lines := strings.Split(string(b), "\n")
		all = append(all, path+":\n"+strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
	return all
}
