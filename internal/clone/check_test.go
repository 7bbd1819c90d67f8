package clone

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/failure"
)

// What was tried is not advised.
func TestDirectoryHint_NotForceAgain(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"Name another directory with -D", "Change data_directory in /etc/repmgr.conf"} {
		for _, pid := range []int{0, 4711} {
			require.NotContains(t, directoryHint(other, "/data", true, pid), "--force")
			require.Contains(t, directoryHint(other, "/data", false, pid), "--force")
			require.Equal(t, pid > 0, strings.Contains(directoryHint(other, "/data", true, pid), "Stop that server first"))
		}
	}
}

// Everything that is wrong comes back at once; the kind says whether only the target is at fault.
func TestChecks_Verdict(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	plan := Plan{Source: "server x", Role: "repl", Dir: t.TempDir(), Elsewhere: "Name another directory"}
	var checks Checks
	checks.Try("replication connection", "accepted", nil)
	checks.warn("archiving", false, "it is off")
	require.NoError(t, checks.Verdict(log, plan))

	checks.Add("space", false, "%d MB missing", 5)
	err := checks.Verdict(log, plan)
	require.ErrorIs(t, err, failure.ErrDirectory)
	require.EqualError(t, err, "can not clone server x: space: 5 MB missing")
	require.Equal(t, "Free some space, or clone into another file system.", failure.Hint(err))

	checks.Try("replication connection", "accepted", errors.New("no entry in pg_hba.conf"))
	err = checks.Verdict(log, plan)
	require.ErrorIs(t, err, failure.ErrRefused)
	require.EqualError(t, err, "can not clone server x:\n  - space: 5 MB missing\n  - replication connection: no entry in pg_hba.conf")
	require.Contains(t, failure.Hint(err), `user "repl"`)
}

func TestPlaceOfTablespace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, placeOfTablespace("/spaces/a", "/spaces/b", dir))
	require.ErrorContains(t, placeOfTablespace("pg_tblspc/1", "pg_tblspc/1", dir), "in-place")
	require.ErrorContains(t, placeOfTablespace(dir+"/a", dir+"/a", dir), "its directory on the source")
	require.ErrorContains(t, placeOfTablespace("/spaces/a", dir+"/a", dir), "tablespace_mapping puts it into")
	require.ErrorContains(t, placeOfTablespace("/spaces/a", dir, dir+"/data"), "would lie inside its own directory")
}

func TestRsyncHost(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"host=node1":                   "me@node1:",
		"hostaddr=::1":                 "me@[::1]:",
		"host=/run/postgresql":         "",
		"host=node1 hostaddr=10.0.0.1": "me@node1:",
	} {
		got, err := rsyncHost(source, "me")
		require.NoError(t, err)
		require.Equal(t, want, got, source)
	}
	for _, host := range []string{"-oProxyCommand=x", "a,b", "a@b"} {
		_, err := rsyncHost("host="+host, "")
		require.ErrorIs(t, err, failure.ErrConfig, host)
	}
}
