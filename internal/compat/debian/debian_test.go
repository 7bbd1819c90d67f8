package debian

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const wrapper = "/usr/share/postgresql-common/pg_wrapper"

// TestDebian types what is typed on a machine with repmgr-common: the init script that it brings, with
// /etc/default/repmgrd as users write it, and commands that go through pg_wrapper. It works on files of
// the packages, in namespaces of its own, which end with everything in them when the script does.
func TestDebian(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace with its own /etc/default and /run")
	}
	if out, err := exec.Command("unshare", "--mount", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("this machine lets nobody make namespaces: %s", out)
	}
	theirs := newest("/usr/lib/postgresql/*/bin/repmgrd")
	for _, path := range []string{"/etc/init.d/repmgrd", "/etc/default/repmgrd", theirs} {
		if _, err := os.Stat(path); err != nil {
			t.Skip("Debian's repmgr 5 is not installed: scripts/deps bench does it")
		}
	}
	for _, path := range []string{"/usr/bin/repmgr", "/usr/bin/repmgrd"} {
		if to, err := filepath.EvalSymlinks(path); err != nil || to != wrapper {
			t.Skipf("%s is not pg_wrapper, but %s (%v)", path, to, err)
		}
	}
	server := os.Getenv("REPMGR_PG_BINDIR")
	if server == "" {
		server = filepath.Dir(newest("/usr/lib/postgresql/*/bin/initdb"))
	}
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "../../../cmd/repmgr", "../../../cmd/repmgrd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	script := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
		"bash", "testdata/debian.sh", bin, server, filepath.Base(filepath.Dir(filepath.Dir(theirs))))
	script.WaitDelay = 10 * time.Second
	out, err := script.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// newest is the file of the newest version of PostgreSQL, or empty.
func newest(pattern string) (path string) {
	paths, _ := filepath.Glob(pattern)
	for _, p := range paths {
		if len(p) > len(path) || len(p) == len(path) && p > path { // 9.6 is before 15
			path = p
		}
	}
	return path
}
