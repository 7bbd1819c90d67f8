package manual

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestManual types every command line of the manual, to the letter: host names,
// paths and the default port included. So it needs hosts whose /etc/hosts,
// /home/postgres, /var/lib/postgresql and port 5432 are its own, and makes them
// out of namespaces, which end with everything in them when the script does.
func TestManual(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, for the network and mount namespaces of its four hosts")
	}
	if out, err := exec.Command("unshare", "--mount", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("this machine lets nobody make namespaces: %s", out)
	}
	bin := t.TempDir()
	build(t, bin)
	work, err := os.MkdirTemp("/tmp", "repmgr-manual-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	script := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
		"bash", "testdata/manual.sh", work, bin, serverPrograms(t))
	script.WaitDelay = 10 * time.Second
	out, err := script.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func build(t *testing.T, into string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", into+"/", "../../cmd/repmgr", "../../cmd/repmgrd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
}

// serverPrograms is the directory of initdb and postgres: the one that is asked
// for, else the newest.
func serverPrograms(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("REPMGR_PG_BINDIR"); dir != "" {
		return dir
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(dirs) == 0 {
		t.Fatal("no PostgreSQL in /usr/lib/postgresql: scripts/deps installs it")
	}
	return slices.Max(dirs)
}
