package pidfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Default is the pid file of the daemon of a node: in the first of these directories that is
// there, and that only we and our group may write to, and otherwise [Former].
func Default(node int, dirs ...string) string {
	const writable = 2 | 1 // W_OK, X_OK
	for _, dir := range dirs {
		if info, err := os.Stat(dir); node != 0 && err == nil && info.IsDir() && info.Mode().Perm()&0o002 == 0 && syscall.Access(dir, writable) == nil {
			return filepath.Join(dir, fmt.Sprintf("repmgrd-%d.pid", node))
		}
	}
	return Former()
}

// Former is the default of repmgr 5, and of our first version.
func Former() string { return filepath.Join(os.TempDir(), "repmgrd.pid") }

// Read is the number in a pid file, 0 where there is none.
func Read(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return max(0, pid)
}

// Runs reports whether there is a process of that number.
func Runs(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) != syscall.ESRCH }
