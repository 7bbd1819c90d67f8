package datadir

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Resolve returns a path with the symbolic links of its existing part resolved.
func Resolve(path string) string {
	there := Nearest(path)
	real, err := filepath.EvalSymlinks(there)
	rest, errRel := filepath.Rel(there, path)
	if err != nil || errRel != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(real, rest)
}

// Within reports whether path is dir or lies below it.
func Within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// Nearest is dir if it exists, or else its nearest parent directory that does.
func Nearest(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// Size is the size of all files below dir.
func Size(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total
}
