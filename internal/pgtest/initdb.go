package pgtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// install is a directory of server binaries.
type install struct {
	dir     string
	version string // as "postgres -V" prints it
	major   int
}

// findInstall takes dir, else REPMGR_PG_BINDIR, else the server in PATH, else the newest one of
// this machine.
func findInstall(dir string) (install, error) {
	named := ""
	if dir == "" {
		if dir = os.Getenv("REPMGR_PG_BINDIR"); dir != "" {
			named = " (REPMGR_PG_BINDIR)"
		}
	}
	if dir == "" {
		dir = binDirInPath()
	}
	if dir == "" {
		dir = newestBinDir()
	}
	if dir == "" {
		return install{}, errors.New("no PostgreSQL server found: install the package postgresql, or let REPMGR_PG_BINDIR name the directory of initdb and postgres")
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "-V").Output()
	if err != nil {
		return install{}, fmt.Errorf("ask the PostgreSQL server in %s%s for its version: %w", dir, named, err)
	}
	version := strings.TrimSpace(string(out)) // postgres (PostgreSQL) 15.20 (Debian ...)
	_, number, _ := strings.Cut(version, ") ")
	digits, _, _ := strings.Cut(number, ".")
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i > 0 {
		digits = digits[:i] // 19beta1
	}
	major, err := strconv.Atoi(digits)
	if err != nil {
		return install{}, fmt.Errorf("read the version of the PostgreSQL server in %s: %q", dir, version)
	}
	return install{dir, version, major}, nil
}

// NeedPrograms skips the test where the PostgreSQL under test came without one
// of these, as those of 14 and 16 do that scripts/postgres-major fetches.
func NeedPrograms(t testing.TB, names ...string) {
	t.Helper()
	in, err := findInstall("")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(in.dir, name)); err != nil {
			t.Skipf("the PostgreSQL in %s came without %s", in.dir, name)
		}
	}
}

// binDirInPath is where PATH has postgres, with initdb beside it; empty: nowhere.
func binDirInPath() string {
	path, err := exec.LookPath("postgres")
	if err == nil {
		path, err = filepath.EvalSymlinks(path) // as in /usr/local/bin
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(filepath.Dir(path), "initdb"))
	}
	if err != nil {
		return ""
	}
	return filepath.Dir(path)
}

// newestBinDir looks where Debian and the packages of postgresql.org for Red Hat put the servers.
func newestBinDir() (dir string) {
	newest := 0
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	others, _ := filepath.Glob("/usr/pgsql-*/bin")
	for _, d := range append(dirs, others...) {
		n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(d)), "pgsql-"))
		if _, err := os.Stat(d + "/postgres"); err == nil && n > newest {
			newest, dir = n, d
		}
	}
	if dir == "" {
		if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
			dir = strings.TrimSpace(string(out))
		}
	}
	return dir
}

// dataDirectory makes dir a new data directory: a copy of one that initdb made
// before, or, when o.Fresh, one from initdb itself.
func dataDirectory(in install, dir string, o Options) error {
	locale := o.Locale
	if locale == "" {
		locale = "C.UTF-8"
	}
	args := []string{"--no-sync", "--encoding=UTF8", "--locale=" + locale, "--auth=trust", "--username=postgres", "--data-checksums"}
	if o.WALSegmentSizeMB != 0 {
		args = append(args, fmt.Sprintf("--wal-segsize=%d", o.WALSegmentSizeMB))
	}
	args = append(args, o.InitdbArgs...)
	if o.Fresh {
		return initdb(in, dir, args)
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	key := sha256.Sum256([]byte(strings.Join(append(args, in.dir, in.version), "\n")))
	made := filepath.Join(cache, fmt.Sprintf("%d-%x", in.major, key[:6]))
	if err := once(made, func(tmp string) error { return initdb(in, tmp, args) }); err != nil {
		return err
	}
	return copyTree(made, dir, nil)
}

func initdb(in install, dir string, args []string) error {
	cmd := exec.Command(filepath.Join(in.dir, "initdb"), append(args, "--pgdata="+dir)...)
	cmd.Dir = filepath.Dir(dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb of PostgreSQL %d: %w\n%s", in.major, err, out)
	}
	return nil
}

// cacheDir is where the directories made by initdb are kept between runs. The
// place has a well-known name, so it must be ours and closed to others.
func cacheDir() (string, error) {
	dir := filepath.Join(filepath.Dir(base()), fmt.Sprintf("repmgr-pgtest-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make cache of data directories: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("look at cache of data directories: %w", err)
	}
	if st := info.Sys().(*syscall.Stat_t); !info.IsDir() || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("use cache of data directories %s: it is not a directory that only we can use: remove it", dir)
	}
	return dir, nil
}

// once makes path by making a neighbour and renaming it, in one process at a
// time, unless it is there.
func once(path string, make func(tmp string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := make(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
