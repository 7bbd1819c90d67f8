package packages

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// built is the directory of the packages that the tests are about.
var built string

func TestMain(m *testing.M) { os.Exit(start(m)) }

func start(m *testing.M) int {
	for _, tool := range []string{"go", "gzip", "sha256sum", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintln(os.Stderr, "skipped, every test:", err)
			return 0
		}
	}
	dir, err := os.MkdirTemp("", "repmgr-packages-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	built = dir
	if out, err := build("../../..", dir); err != nil {
		fmt.Fprintf(os.Stderr, "scripts/packages: %v\n%s\n", err, out)
		return 1
	}
	return m.Run()
}

// build makes the packages of the tree in root, as of a fixed time.
func build(root, dir string) ([]byte, error) {
	cmd := exec.Command("bash", "scripts/packages", dir)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	return cmd.CombinedOutput()
}

// file is the path of the one file of the packages that ends so.
func file(t *testing.T, end string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(built, "*"+end))
	require.NoError(t, err)
	require.Len(t, paths, 1)
	return paths[0]
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%s %q: %v: %s", name, args, err, exit.Stderr)
	}
	require.NoError(t, err)
	return string(out)
}

// in both packages, and in one of them only.
var (
	inBoth = []string{
		"/usr/bin/repmgr", "/usr/bin/repmgrd", "/usr/lib/systemd/system/repmgrd.service",
		"/usr/share/bash-completion/completions/repmgr", "/usr/share/fish/vendor_completions.d/repmgr.fish",
		"/usr/share/man/man1/repmgr.1.gz", "/usr/share/man/man1/repmgrd.1.gz", "/usr/share/man/man5/repmgr.conf.5.gz",
		"/usr/share/doc/repmgr-go/README.md", "/usr/share/doc/repmgr-go/CHANGELOG.md", "/usr/share/doc/repmgr-go/packages.md", "/usr/share/doc/repmgr-go/compat.md",
		"/usr/share/doc/repmgr-go/copyright", "/usr/share/doc/repmgr-go/sbom.cdx.json", "/usr/share/doc/repmgr-go/repmgr.conf.sample",
	}
	inDeb = []string{"/usr/lib/repmgr-go/service", "/usr/lib/repmgr-go/majors", "/usr/share/zsh/vendor-completions/_repmgr"}
	inRPM = []string{
		"/usr/libexec/repmgr-go/majors", "/usr/share/repmgr-go/repmgr-NN.service", "/usr/share/zsh/site-functions/_repmgr",
		"/usr/lib/systemd/system/repmgr-13.service.d/10-repmgr-go.conf", "/usr/lib/systemd/system/repmgr-18.service.d/10-repmgr-go.conf",
	}
)

func TestContents(t *testing.T) {
	t.Parallel()
	deb := map[string]string{} // the mode of each path
	for line := range strings.Lines(run(t, "dpkg-deb", "-c", file(t, ".deb"))) {
		fields := strings.Fields(line)
		require.Equal(t, "root/root", fields[1], line)
		deb[strings.TrimPrefix(fields[5], ".")] = fields[0]
	}
	for _, path := range slices.Concat(inBoth, inDeb) {
		require.Contains(t, deb, path)
	}
	for _, program := range []string{"/usr/bin/repmgr", "/usr/bin/repmgrd", "/usr/lib/repmgr-go/service", "/usr/lib/repmgr-go/majors"} {
		require.Equal(t, "-rwxr-xr-x", deb[program], program)
	}
	require.Equal(t, "-rw-r--r--", deb["/usr/lib/systemd/system/repmgrd.service"])
	// Who would get rid of a package of repmgr 5 would get rid of repmgr.so.
	for _, field := range []string{"Conflicts", "Replaces", "Breaks", "Provides"} {
		require.Empty(t, strings.TrimSpace(run(t, "dpkg-deb", "-f", file(t, ".deb"), field)))
	}

	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("the RPM is not looked into: rpm is not installed")
	}
	rpm := strings.Fields(run(t, "rpm", "--dbpath", t.TempDir(), "-qpl", file(t, ".rpm")))
	for _, path := range slices.Concat(inBoth, inRPM) {
		require.Contains(t, rpm, path)
	}
	for _, query := range []string{"--conflicts", "--obsoletes"} {
		require.Empty(t, run(t, "rpm", "--dbpath", t.TempDir(), "-qp", query, file(t, ".rpm")))
	}
}

// The same sources make the same bytes in another directory and at another time.
func TestReproducible(t *testing.T) {
	t.Parallel()
	tree, again := filepath.Join(t.TempDir(), "elsewhere"), t.TempDir()
	require.NoError(t, filepath.WalkDir("../../..", func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("../../..", path)
		switch {
		case err != nil:
			return err
		case rel == ".git" || rel == "bin":
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(tree, rel), 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(tree, rel), text, info.Mode().Perm())
	}))
	out, err := build(tree, again)
	require.NoError(t, err, "%s", out)
	for _, end := range []string{".deb", ".rpm", ".cdx.json"} {
		first, err := os.ReadFile(file(t, end))
		require.NoError(t, err)
		second, err := os.ReadFile(filepath.Join(again, filepath.Base(file(t, end))))
		require.NoError(t, err)
		require.True(t, bytes.Equal(first, second), "the two builds of %s differ", filepath.Base(file(t, end)))
	}
}

// The list of what is in the programs names each module that the programs in the package name themselves, and no other.
func TestSBOM(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run(t, "dpkg-deb", "-x", file(t, ".deb"), dir)
	var want []string
	for _, program := range []string{"repmgr", "repmgrd"} {
		for line := range strings.Lines(run(t, "go", "version", "-m", filepath.Join(dir, "usr/bin", program))) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "dep" {
				want = append(want, f[1]+"@"+f[2])
			}
		}
	}
	want = append(want, "std@"+strings.TrimPrefix(runtime.Version(), "go"))
	slices.Sort(want)
	want = slices.Compact(want)

	text, err := os.ReadFile(file(t, ".cdx.json"))
	require.NoError(t, err)
	packed, err := os.ReadFile(filepath.Join(dir, "usr/share/doc/repmgr-go/sbom.cdx.json"))
	require.NoError(t, err)
	require.Equal(t, string(packed), string(text))
	var bom struct {
		BOMFormat, SpecVersion string
		Components             []struct{ Type, Name, Version, PURL string }
		Dependencies           []struct{ DependsOn []string }
	}
	require.NoError(t, json.Unmarshal(text, &bom))
	require.Equal(t, "CycloneDX", bom.BOMFormat)
	var have []string
	for _, c := range bom.Components {
		require.Equal(t, "pkg:golang/"+c.Name+"@"+c.Version, c.PURL)
		have = append(have, c.Name+"@"+c.Version)
	}
	slices.Sort(have)
	require.Equal(t, want, have)
	require.Len(t, bom.Dependencies[0].DependsOn, len(want))
}

// What the entrypoint of the container writes is what repmgr then reads.
func TestEntrypoint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run(t, "dpkg-deb", "-x", file(t, ".deb"), dir)
	secret, mounted := filepath.Join(dir, "secret"), filepath.Join(dir, "mounted")
	require.NoError(t, os.WriteFile(secret, []byte(`it's a:pass\word`+"\n"), 0o600))
	require.NoError(t, os.Mkdir(mounted, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(mounted, "repmgr.conf"), []byte("node_id=7\nconninfo='host=mine'\n"), 0o600))
	for name, c := range map[string]struct {
		env  []string
		want []string // lines of the settings in force, or of the error
		code int
	}{
		"a pod": {
			[]string{"REPMGR_NODE_NAME=pg-08", "REPMGR_NODE_NETWORK_NAME=pg-08.pg.svc", "REPMGR_USERNAME=o'b\\c", "REPMGR_PASSWORD_FILE=" + secret, "PGDATA=/data"},
			[]string{
				"node_id|1008", "node_name|pg-08", "failover|automatic", "failover_on_shutdown|true", "use_replication_slots|true", "data_directory|/data",
				`conninfo|user='o\'b\\c' host='pg-08.pg.svc' dbname='repmgr' port=5432 connect_timeout=5 passfile='` + dir + `/.pgpass'`,
			},
			0,
		},
		"everything said": {
			[]string{
				"REPMGR_NODE_ID=3", "REPMGR_NODE_NAME=three", "REPMGR_PORT_NUMBER=5433", "REPMGR_DATABASE=db", "REPMGR_CONNECT_TIMEOUT=2", "REPMGR_NODE_LOCATION=dc1",
				"REPMGR_NODE_PRIORITY=50", "REPMGR_LOG_LEVEL=NOTICE", "REPMGR_USE_REPLICATION_SLOTS=0", "REPMGR_FAILOVER=manual", "REPMGR_RECONNECT_ATTEMPTS=2", "REPMGR_RECONNECT_INTERVAL=3",
				"REPMGR_MASTER_RESPONSE_TIMEOUT=20", "REPMGR_DEGRADED_MONITORING_TIMEOUT=5", "REPMGR_PRIMARY_VISIBILITY_CONSENSUS=true", "REPMGR_MONITORING_HISTORY=yes",
				"REPMGR_MONITOR_INTERVAL_SECS=1", "REPMGR_CHILD_NODES_CHECK_INTERVAL=6", "REPMGR_CHILD_NODES_CONNECTED_MIN_COUNT=1", "REPMGR_CHILD_NODES_DISCONNECT_TIMEOUT=31", "REPMGR_USE_PGREWIND=yes",
			},
			[]string{
				"node_id|3", "conninfo|user='repmgr' host='three' dbname='db' port=5433 connect_timeout=2", "location|dc1", "priority|50", "log_level|NOTICE", "use_replication_slots|false",
				"failover|manual", "reconnect_attempts|2", "reconnect_interval|3", "async_query_timeout|20", "degraded_monitoring_timeout|5", "primary_visibility_consensus|true",
				"monitoring_history|true", "monitor_interval_secs|1", "child_nodes_check_interval|6", "child_nodes_connected_min_count|1", "child_nodes_disconnect_timeout|31", "rejoin|rewind",
			},
			0,
		},
		"a file of one's own":     {[]string{"REPMGR_NODE_NAME=pg-1", "REPMGR_MOUNTED_CONF_DIR=" + mounted}, []string{"node_id|7", "conninfo|host=mine"}, 0},
		"no number":               {[]string{"REPMGR_NODE_NAME=primary"}, []string{"entrypoint: REPMGR_NODE_NAME=primary does not end in a number: set REPMGR_NODE_ID"}, 1},
		"a secret that is not":    {[]string{"REPMGR_NODE_NAME=pg-1", "REPMGR_PASSWORD_FILE=/none"}, []string{"entrypoint: REPMGR_PASSWORD_FILE: /none can not be read"}, 1},
		"a line too many":         {[]string{"REPMGR_NODE_NAME=pg-1\nfailover=manual", "REPMGR_NODE_ID=1"}, []string{"entrypoint: REPMGR_NODE_NAME has more than one line"}, 1},
		"the seed, and no octals": {[]string{"REPMGR_NODE_NAME=witness-010", "REPMGR_NODE_ID_START_SEED=2000"}, []string{"node_id|2010"}, 0},
	} {
		conf := t.TempDir()
		cmd := exec.Command("sh", "../../../packaging/entrypoint", filepath.Join(dir, "usr/bin/repmgr"), "-f", filepath.Join(conf, "repmgr.conf"), "--dump-config")
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "REPMGR_CONF_DIR=" + conf}, c.env...)
		out, err := cmd.CombinedOutput()
		require.Equal(t, c.code, cmd.ProcessState.ExitCode(), "%s: %v\n%s", name, err, out)
		lines := strings.Split(strings.ReplaceAll(string(out), conf, dir), "\n")
		for _, want := range c.want {
			require.Contains(t, lines, want, name)
		}
		require.NotContains(t, string(out), "WARNING", name)
		require.NotContains(t, string(out), "pass\\word", name)
		if name == "a pod" {
			text, err := os.ReadFile(filepath.Join(conf, ".pgpass"))
			require.NoError(t, err)
			require.Equal(t, `*:*:*:o'b\\c:it's a\:pass\\word`+"\n", string(text))
		}
	}
}

// base is the machine that the tests change copies of, and throw away: this one, or a bare Debian.
var base = sync.OnceValues(func() (string, error) {
	if os.Getenv("REPMGR_PACKAGES_CHROOT") == "" {
		return "/", nil
	}
	dir := filepath.Join(built, "base")
	out, err := exec.Command("bash", "testdata/base.sh", dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("make a bare Debian: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return dir, err
})

// theirs is the version of PostgreSQL for which repmgr 5 is there, or empty.
func theirs(t *testing.T) string {
	t.Helper()
	dir, err := base()
	require.NoError(t, err)
	found, _ := filepath.Glob(filepath.Join(dir, "usr/lib/postgresql/*/lib/repmgr.so"))
	if len(found) == 0 {
		t.Skip("Debian's repmgr 5 is not installed: scripts/deps bench does it")
	}
	return filepath.Base(filepath.Dir(filepath.Dir(found[0])))
}

// On a machine with Debian's repmgr 5 our package takes its place, leaves its configuration and repmgr.so, and gives everything back.
func TestDebian(t *testing.T) {
	t.Parallel()
	inside(t, "debian.sh", file(t, ".deb"), theirs(t))
}

// Where RPMs of PostgreSQL are, with those of repmgr 5 and without, the unit runs our program with the configuration that a playbook of
// edb-ansible has named in a drop-in.
func TestRPM(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("rpm"); err != nil && os.Getenv("REPMGR_PACKAGES_CHROOT") == "" {
		t.Skip("rpm is not installed: scripts/deps does it")
	}
	inside(t, "rpm.sh", file(t, ".rpm"))
}

// An operator takes a server over that Debian's repmgr 5 watches, and gives it back, on a Debian that has been booted.
func TestSystemd(t *testing.T) {
	t.Parallel()
	if os.Getenv("REPMGR_PACKAGES_CHROOT") == "" {
		t.Skip("boots a Debian in a container: make test-packages does it")
	}
	inside(t, "systemd.sh", file(t, ".deb"), theirs(t))
}

// inside runs a script of testdata as root on a machine that is thrown away.
func inside(t *testing.T, script, pkg string, args ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace and a chroot")
	}
	if out, err := exec.Command("unshare", "--mount", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("this machine lets nobody make namespaces: %s", out)
	}
	root, err := base()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	run(t, "cp", pkg, filepath.Join("testdata", script), dir)
	cmd := exec.CommandContext(ctx, "unshare", append([]string{
		"--mount", "--ipc", "--pid", "--fork", "--kill-child", "bash", "testdata/machine.sh", dir, "bash", "/packages/" + script, "/packages/" + filepath.Base(pkg),
	}, args...)...)
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "REPMGR_PACKAGES_BASE="+root)
	if script == "systemd.sh" {
		cmd.Env = append(cmd.Env, "REPMGR_PACKAGES_BOOT=1")
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 77 {
		t.Skipf("%s", out)
	}
	require.NoError(t, err, "%s", out)
	t.Logf("%s", out)
}
