package conffile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{
		"cwd/repmgr.conf", "exe/repmgr.conf", "etc/repmgr.conf",
		"etc/repmgr/9/repmgr.conf", "etc/repmgr/15/repmgr.conf", "etc/repmgr/16/other.conf", "etc/repmgr/old/repmgr.conf",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dirs := []string{filepath.Join(dir, "cwd"), filepath.Join(dir, "exe"), filepath.Join(dir, "etc")}
	for _, want := range []string{"cwd/repmgr.conf", "exe/repmgr.conf", "etc/repmgr.conf", "etc/repmgr/15/repmgr.conf", "etc/repmgr/9/repmgr.conf"} {
		got, found, err := Find("repmgr.conf", dirs, filepath.Join(dir, "etc/repmgr"))
		if err != nil || !found || got != filepath.Join(dir, want) {
			t.Errorf("got %q, %v, %v; want %s", got, found, err, want)
		}
		if err := os.Remove(filepath.Join(dir, want)); err != nil {
			t.Fatal(err)
		}
	}
	if got, found, err := Find("repmgr.conf", dirs, filepath.Join(dir, "etc/repmgr")); found || err != nil {
		t.Errorf("got %q, %v, %v; want none", got, found, err)
	}
}
