package datadir

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Resolve is a path without symbolic links, as far as it exists.
func Resolve(path string) string {
	there := Nearest(path)
	real, err := filepath.EvalSymlinks(there)
	rest, errRel := filepath.Rel(there, path)
	if err != nil || errRel != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(real, rest)
}

// Within says whether path is dir or lies below it.
func Within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// Nearest is the nearest directory on the way to dir that exists.
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
