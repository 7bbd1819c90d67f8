package basebackup_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/basebackup"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/wal"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func config(t *testing.T, conninfo string) *pgconn.Config {
	t.Helper()
	cfg, err := pgconn.ParseConfig(conninfo)
	require.NoError(t, err)
	return cfg
}

// clone copies the server and fails the test when that does not work.
func clone(t *testing.T, from *pgtest.Server, o basebackup.Options) basebackup.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(time.Minute))
	defer cancel()
	o.FastCheckpoint = true
	res, err := basebackup.Run(ctx, config(t, from.Conninfo()), o)
	require.NoError(t, err)
	return res
}

// startStandby starts a copy as a standby of from, and waits until it streams.
func startStandby(t *testing.T, from *pgtest.Server, dir string) *pgtest.Server {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600))
	auto, err := os.OpenFile(filepath.Join(dir, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = fmt.Fprintf(auto, "primary_conninfo = '%s'\nprimary_slot_name = ''\n", from.Conninfo("application_name=copy"))
	require.NoError(t, errors.Join(err, auto.Close()))
	s := pgtest.StartDir(t, dir, pgtest.Options{Name: "copy", BinDir: from.BinDir})
	pgtest.WaitFor(t, "copy to stream", func(ctx context.Context) error { return from.StreamsTo(ctx, "copy") })
	return s
}

// caughtUp waits until the standby has replayed what the primary has written.
func caughtUp(t *testing.T, primary, standby *pgtest.Server) {
	t.Helper()
	lsn := primary.QueryString(t, "SELECT pg_current_wal_lsn()::text")
	pgtest.WaitFor(t, "standby to catch up", func(context.Context) error {
		if standby.QueryString(t, "SELECT (pg_last_wal_replay_lsn() >= $1::text::pg_lsn)::text", lsn) != "true" {
			return errors.New("not yet")
		}
		return nil
	})
}

// exists reports whether a file of the copy is there.
func exists(t *testing.T, dir, name string) bool {
	t.Helper()
	_, err := os.Lstat(filepath.Join(dir, name))
	if err != nil {
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
	return err == nil
}

// idle waits until nothing replicates from the server and no slot of ours is left.
func idle(t *testing.T, s *pgtest.Server) {
	t.Helper()
	pgtest.WaitFor(t, "source to be left alone", func(context.Context) error {
		got := s.QueryString(t, `SELECT (SELECT count(*) FROM pg_stat_replication) || ' senders, ' ||
			(SELECT count(*) FROM pg_replication_slots) || ' slots'`)
		if got != "0 senders, 0 slots" {
			return errors.New(got)
		}
		return nil
	})
}

// filled makes the source's copy long enough to do something in its middle.
func filled(t *testing.T, s *pgtest.Server) {
	t.Helper()
	s.Exec(t, "CREATE TABLE filler AS SELECT g, repeat('x', 100) AS pad FROM generate_series(1, 200000) g")
}

func TestRun_CopyUnderLoadStartsAsStandbyWithEveryRow(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Name: "source", WALSegmentSizeMB: 1})
	filled(t, primary)
	writer := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{primary.Conninfo()}, Interval: time.Millisecond})
	// More than a row now and then: WAL that fills many segments meanwhile.
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	load.Go(func() {
		c, err := pgconn.Connect(ctx, primary.Conninfo())
		if err != nil {
			return
		}
		defer c.Close(context.Background())
		for ctx.Err() == nil {
			_, _ = c.Exec(ctx, "UPDATE filler SET g = g + 1 WHERE g % 50 = 0; CHECKPOINT").ReadAll()
		}
	})
	defer load.Wait()
	defer stop()

	dir := filepath.Join(t.TempDir(), "copy")
	var seen []basebackup.Progress
	res := clone(t, primary, basebackup.Options{
		Dir: dir, MaxRate: 40 << 10, Manifest: "CRC32C", NoSync: true,
		Progress: func(p basebackup.Progress) { seen = append(seen, p) },
	})
	stop()
	load.Wait()
	writer.WaitForMore(t, 10)
	writer.Stop()

	require.Equal(t, primary.Major, res.ServerVersion)
	require.Equal(t, wal.Timeline(1), res.Timeline)
	require.Less(t, res.Start, res.Stop)
	require.Equal(t, primary.QueryString(t, "SELECT system_identifier::text FROM pg_control_system()"), fmt.Sprint(res.SystemIdentifier))
	require.Greater(t, res.WALBytes, int64(2<<20), "the load was meant to fill segments")
	require.Equal(t, primary.QueryString(t, "SELECT count(*)::text FROM pg_replication_slots"), "0", "temporary slot is left behind")
	require.False(t, exists(t, dir, "global/pg_control.unfinished"))
	require.True(t, exists(t, dir, "backup_manifest"))
	last := seen[len(seen)-1]
	require.Equal(t, basebackup.PhaseDone, last.Phase)
	require.Equal(t, res.Bytes, last.Bytes)
	require.InEpsilon(t, last.TotalBytes, last.Bytes, 0.2)
	for i := range seen[1:] {
		require.LessOrEqual(t, seen[i].Bytes, seen[i+1].Bytes)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "pg_wal", "????????????????????????"))
	require.NoError(t, err)
	for _, s := range segments {
		info, err := os.Stat(s)
		require.NoError(t, err)
		require.Equal(t, int64(1<<20), info.Size(), "size of WAL segment %s", s)
	}

	standby := startStandby(t, primary, dir)
	caughtUp(t, primary, standby)
	writer.Verify(t, standby.Conninfo())
	sum := "SELECT count(*) || ' ' || sum(g) FROM filler"
	require.Equal(t, primary.QueryString(t, sum), standby.QueryString(t, sum))
}

func TestRun_CopyIsOnDiskAndStreamsThroughAGivenSlot(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	primary.Exec(t, "SELECT pg_create_physical_replication_slot('standby_1', true)")
	before := primary.QueryString(t, "SELECT restart_lsn::text FROM pg_replication_slots")
	filled(t, primary)
	dir := filepath.Join(t.TempDir(), "copy")
	res := clone(t, primary, basebackup.Options{Dir: dir, Slot: "standby_1"})

	require.Equal(t, "standby_1 false", primary.QueryString(t, "SELECT slot_name || ' ' || active FROM pg_replication_slots"))
	at, err := wal.ParseLSN(primary.QueryString(t, "SELECT restart_lsn::text FROM pg_replication_slots"))
	require.NoError(t, err)
	require.NotEqual(t, before, at.String())
	require.LessOrEqual(t, at, res.Stop|(16<<20-1)+1, "what the slot no longer holds must be in the copy")
	startStandby(t, primary, dir)
}

func TestRun_TablespacesGoWhereTheMapSays(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	old, mapped := t.TempDir(), filepath.Join(t.TempDir(), "deep", "er")
	c := primary.Conn(t)
	_, err := c.Exec(t.Context(), "CREATE TABLESPACE elsewhere LOCATION '"+old+"'")
	require.NoError(t, err)
	primary.Exec(t, "CREATE TABLE t TABLESPACE elsewhere AS SELECT generate_series(1, 1000) AS id")
	oid := primary.QueryString(t, "SELECT oid::text FROM pg_tablespace WHERE spcname = 'elsewhere'")

	t.Run("its own location is taken", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "copy")
		_, err := basebackup.Run(t.Context(), config(t, primary.Conninfo()), basebackup.Options{Dir: dir, FastCheckpoint: true})
		require.ErrorIs(t, err, basebackup.ErrNotEmpty)
		require.ErrorContains(t, err, old)
	})
	t.Run("two go to one place", func(t *testing.T) {
		other := t.TempDir()
		_, err := c.Exec(t.Context(), "CREATE TABLESPACE another LOCATION '"+other+"'")
		require.NoError(t, err)
		_, err = basebackup.Run(t.Context(), config(t, primary.Conninfo()), basebackup.Options{
			Dir: filepath.Join(t.TempDir(), "copy"), FastCheckpoint: true,
			TablespaceMap: func(uint32, string) string { return filepath.Join(other, "one") },
		})
		require.ErrorContains(t, err, "too")
		_, err = c.Exec(t.Context(), "DROP TABLESPACE another")
		require.NoError(t, err)
	})
	t.Run("the caller objects", func(t *testing.T) {
		no := errors.New("no")
		_, err := basebackup.Run(t.Context(), config(t, primary.Conninfo()), basebackup.Options{
			Dir: filepath.Join(t.TempDir(), "copy"), FastCheckpoint: true,
			TablespaceMap: func(uint32, string) string { return mapped },
			OnTablespace:  func(string) error { return no },
		})
		require.ErrorIs(t, err, no)
		require.False(t, exists(t, mapped, ""))
	})
	dir := filepath.Join(t.TempDir(), "copy")
	var told []string
	res := clone(t, primary, basebackup.Options{
		Dir: dir,
		TablespaceMap: func(o uint32, location string) string {
			require.Equal(t, oid, fmt.Sprint(o))
			require.Equal(t, old, location)
			return mapped
		},
		OnTablespace: func(path string) error {
			told = append(told, path)
			require.False(t, exists(t, path, ""), "it is told before the directory is made")
			return nil
		},
	})
	require.Equal(t, []string{mapped}, told)
	require.Len(t, res.Tablespaces, 1)
	link, err := os.Readlink(filepath.Join(dir, "pg_tblspc", oid))
	require.NoError(t, err)
	require.Equal(t, mapped, link)
	standby := startStandby(t, primary, dir)
	require.Equal(t, "1000", standby.QueryString(t, "SELECT count(*)::text FROM t"))
}

func TestRun_TablespacesInPlace(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"allow_in_place_tablespaces": "on"}}) // the copy's too
	if primary.Major < 16 {
		t.Skip("tablespaces in place came with 16")
	}
	c := primary.Conn(t)
	for _, sql := range []string{
		"CREATE TABLESPACE here LOCATION ''",
		"CREATE TABLE t TABLESPACE here AS SELECT generate_series(1, 1000) AS id",
	} {
		_, err := c.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	res := clone(t, primary, basebackup.Options{Dir: dir, OnTablespace: func(string) error {
		return errors.New("nothing lies outside")
	}})
	require.Empty(t, res.Tablespaces)
	standby := startStandby(t, primary, dir)
	require.Equal(t, "1000", standby.QueryString(t, "SELECT count(*)::text FROM t"))
}

func TestRun_FromAStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Name: "primary"})
	filled(t, primary)
	source := pgtest.NewStandby(t, primary, pgtest.Options{Name: "source"})
	caughtUp(t, primary, source)
	dir := filepath.Join(t.TempDir(), "copy")
	clone(t, source, basebackup.Options{Dir: dir})
	idle(t, source)
	standby := startStandby(t, source, dir)
	require.Equal(t, "200000", standby.QueryString(t, "SELECT count(*)::text FROM filler"))
}

func TestRun_AfterAPromotionTheHistoryComesAlong(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Name: "primary"})
	source := pgtest.NewStandby(t, primary, pgtest.Options{Name: "source"})
	primary.Stop("fast")
	source.Exec(t, "SELECT pg_promote(true)")
	dir := filepath.Join(t.TempDir(), "copy")
	res := clone(t, source, basebackup.Options{Dir: dir})
	require.Equal(t, wal.Timeline(2), res.Timeline)
	require.True(t, exists(t, dir, "pg_wal/00000002.history"))
	require.True(t, exists(t, dir, "pg_wal/archive_status/00000002.history.done"))
	startStandby(t, source, dir)
}

func TestRun_FollowsASourceOntoANewTimeline(t *testing.T) {
	t.Parallel()
	a := pgtest.Start(t, pgtest.Options{Name: "a"})
	filled(t, a)
	b := pgtest.NewStandby(t, a, pgtest.Options{Name: "b"})
	source := pgtest.NewStandby(t, b, pgtest.Options{Name: "source"})
	caughtUp(t, a, source)
	dir := filepath.Join(t.TempDir(), "copy")
	var once sync.Once
	res := clone(t, source, basebackup.Options{
		Dir: dir, MaxRate: 8 << 10,
		Progress: func(p basebackup.Progress) {
			if p.Bytes == 0 {
				return
			}
			once.Do(func() {
				a.Stop("fast")
				b.Exec(t, "SELECT pg_promote(true)")
				// A restartpoint moves the copy's end onto the new timeline.
				b.Exec(t, "CREATE TABLE later AS SELECT 1")
				b.Exec(t, "CHECKPOINT")
				caughtUp(t, b, source)
				source.Exec(t, "CHECKPOINT")
			})
		},
	})
	require.Equal(t, wal.Timeline(2), res.Timeline)
	require.True(t, exists(t, dir, "pg_wal/00000002.history"))
	startStandby(t, b, dir)
}

// interrupt runs a slow copy and calls act once in its middle.
func interrupt(t *testing.T, ctx context.Context, source *pgtest.Server, o basebackup.Options, act func()) error {
	t.Helper()
	var once sync.Once
	o.FastCheckpoint, o.MaxRate = true, 1<<10
	o.Progress = func(p basebackup.Progress) {
		if p.Bytes > 0 {
			once.Do(act)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pgtest.Timeout(30*time.Second))
	defer cancel()
	_, err := basebackup.Run(ctx, config(t, source.Conninfo()), o)
	require.Error(t, err)
	require.NoError(t, ctx.Err(), "the copy ended only by the test's deadline")
	require.False(t, exists(t, o.Dir, "global/pg_control"))
	t.Log(err)
	return err
}

func TestRun_CancelledReturnsAtOnceWithoutAControlFile(t *testing.T) {
	t.Parallel()
	source := pgtest.Start(t, pgtest.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	why := errors.New("the operator pressed a key")
	dir := filepath.Join(t.TempDir(), "copy")
	var at time.Time
	var once sync.Once
	_, err := basebackup.Run(ctx, config(t, source.Conninfo()), basebackup.Options{
		Dir: dir, FastCheckpoint: true, MaxRate: 1 << 10,
		Progress: func(p basebackup.Progress) {
			if p.Bytes > 0 {
				once.Do(func() { at = time.Now(); cancel(why) })
			}
		},
	})
	require.ErrorIs(t, err, why)
	require.Less(t, time.Since(at), pgtest.Timeout(time.Second))
	require.False(t, exists(t, dir, "global/pg_control"))
	require.True(t, exists(t, dir, "PG_VERSION") || exists(t, dir, "backup_label"), "what was written stays")
	idle(t, source)
}

func TestRun_CancelledWhileWaitingForACheckpoint(t *testing.T) {
	t.Parallel()
	source := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"checkpoint_timeout": "1h", "checkpoint_completion_target": "0.9"}})
	filled(t, source)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var at time.Time
	var once sync.Once
	_, err := basebackup.Run(ctx, config(t, source.Conninfo()), basebackup.Options{
		Dir: filepath.Join(t.TempDir(), "copy"),
		Progress: func(p basebackup.Progress) {
			if p.Phase == basebackup.PhaseCheckpoint {
				once.Do(func() { at = time.Now(); cancel() })
			}
		},
	})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, string(basebackup.PhaseCheckpoint))
	require.Less(t, time.Since(at), pgtest.Timeout(3*time.Second))
	idle(t, source) // not only after the checkpoint
}

// The connection for WAL waits until the checkpoint is complete, longer than the limit.
func TestRun_IdleLimitOfTheSource(t *testing.T) {
	t.Parallel()
	source := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"checkpoint_timeout": "1h", "checkpoint_completion_target": "0.9"}})
	if source.Major < 14 {
		t.Skip("idle_session_timeout came with PostgreSQL 14")
	}
	filled(t, source)
	cfg := config(t, source.Conninfo())
	source.Exec(t, "ALTER ROLE CURRENT_USER SET idle_session_timeout = 0") // of a session for SQL only
	source.Exec(t, "ALTER SYSTEM SET idle_session_timeout = '1ms'")
	source.Exec(t, "SELECT pg_reload_conf()")
	waiting := make(chan struct{})
	var once sync.Once
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() {
		select {
		case <-waiting:
		case <-t.Context().Done():
			return
		}
		for range 3 { // a question each takes longer than the limit
			source.Exec(t, "SELECT pg_sleep(0.02)")
		}
		source.Exec(t, "CHECKPOINT")
	})
	_, err := basebackup.Run(t.Context(), cfg, basebackup.Options{
		Dir: filepath.Join(t.TempDir(), "copy"),
		Progress: func(p basebackup.Progress) {
			if p.Phase == basebackup.PhaseCheckpoint {
				once.Do(func() { close(waiting) })
			}
		},
	})
	require.NoError(t, err)
}

func TestRun_SourceThatDiesMidway(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]func(*pgtest.Server){
		"killed":         (*pgtest.Server).Kill,
		"immediate stop": func(s *pgtest.Server) { s.Stop("immediate") },
		"fast stop":      func(s *pgtest.Server) { s.Stop("fast") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := pgtest.Start(t, pgtest.Options{})
			err := interrupt(t, t.Context(), source, basebackup.Options{Dir: filepath.Join(t.TempDir(), "copy")}, func() { kill(source) })
			require.ErrorIs(t, err, basebackup.ErrSourceLost)
		})
	}
}

func TestRun_SourceThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	source := pgtest.Start(t, pgtest.Options{})
	err := interrupt(t, t.Context(), source, basebackup.Options{Dir: filepath.Join(t.TempDir(), "copy"), WALTimeout: time.Second}, func() {
		pids := source.QueryString(t, "SELECT string_agg(pid::text, ' ') FROM pg_stat_replication")
		for _, pid := range strings.Fields(pids) {
			var n int
			_, err := fmt.Sscan(pid, &n)
			require.NoError(t, err)
			require.NoError(t, syscall.Kill(n, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(n, syscall.SIGCONT) })
		}
	})
	require.ErrorIs(t, err, basebackup.ErrSourceLost)
}

func TestRun_SourceThatIsPromotedMidway(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Name: "primary"})
	source := pgtest.NewStandby(t, primary, pgtest.Options{Name: "source"})
	err := interrupt(t, t.Context(), source, basebackup.Options{Dir: filepath.Join(t.TempDir(), "copy")}, func() {
		source.Exec(t, "SELECT pg_promote(true)")
	})
	require.ErrorIs(t, err, basebackup.ErrPromoted)
}

func TestRun_Refusals(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "precious"), nil, 0o600))
	for _, tc := range []struct {
		name     string
		server   pgtest.Options
		conninfo string
		options  basebackup.Options
		prepare  string
		want     error
	}{
		{name: "directory is not empty", options: basebackup.Options{Dir: full}, want: basebackup.ErrNotEmpty},
		{name: "only one WAL sender", server: pgtest.Options{Settings: map[string]string{"max_wal_senders": "1"}}, want: basebackup.ErrNoWALSenders},
		{name: "wal_level minimal", server: pgtest.Options{Settings: map[string]string{"wal_level": "minimal", "max_wal_senders": "0"}}, want: basebackup.ErrWALLevel},
		{name: "no slot left", server: pgtest.Options{Settings: map[string]string{"max_replication_slots": "0"}}, want: basebackup.ErrNoSlots},
		{name: "wrong password", server: pgtest.Options{Password: "right"}, conninfo: "password=se_cret", want: basebackup.ErrAuthentication},
		{name: "no replication in pg_hba.conf", server: pgtest.Options{HBA: []string{"host replication all all reject"}}, want: basebackup.ErrAuthentication},
		{name: "role without replication", prepare: "CREATE ROLE plain LOGIN", conninfo: "user=plain", want: basebackup.ErrPrivilege},
		{name: "slot is missing", options: basebackup.Options{Slot: "nowhere"}, want: basebackup.ErrNoSlot},
		{name: "tablespace map is relative", prepare: "tablespace", options: basebackup.Options{
			TablespaceMap: func(uint32, string) string { return "here" },
		}, want: basebackup.ErrUnsafePath},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			source := pgtest.Start(t, tc.server)
			switch tc.prepare {
			case "":
			case "tablespace":
				source.Exec(t, "CREATE TABLESPACE s LOCATION '"+t.TempDir()+"'")
			default:
				source.Exec(t, tc.prepare)
			}
			o := tc.options
			o.FastCheckpoint = true
			if o.Dir == "" {
				o.Dir = filepath.Join(t.TempDir(), "copy")
			}
			ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(20*time.Second))
			defer cancel()
			var extra []string
			if tc.conninfo != "" {
				extra = append(extra, tc.conninfo)
			}
			_, err := basebackup.Run(ctx, config(t, source.Conninfo(extra...)), o)
			require.ErrorIs(t, err, tc.want)
			require.NotContains(t, err.Error(), "se_cret")
			require.False(t, exists(t, o.Dir, "global/pg_control"))
			t.Log(err)
		})
	}
}

func TestRun_NoSlotsIsNoMatterWithoutASlot(t *testing.T) {
	t.Parallel()
	source := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_replication_slots": "0"}})
	clone(t, source, basebackup.Options{Dir: filepath.Join(t.TempDir(), "copy"), NoSlot: true, NoSync: true})
}

func TestRun_ModesFollowTheSource(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		dir  os.FileMode
		file os.FileMode
	}{
		"owner only":   {nil, 0o700, 0o600},
		"group access": {[]string{"--allow-group-access"}, 0o750, 0o640},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := pgtest.Start(t, pgtest.Options{InitdbArgs: tc.args})
			dir := t.TempDir() // exists, is empty, has another mode
			clone(t, source, basebackup.Options{Dir: dir, NoSync: true})
			require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				require.NoError(t, err)
				info, err := d.Info()
				require.NoError(t, err)
				want := tc.file
				if d.IsDir() {
					want = tc.dir
				}
				rel, _ := filepath.Rel(dir, path)
				if rel == "postgresql.conf" || rel == "pg_hba.conf" { // written by the test bench
					return nil
				}
				require.Equal(t, want, info.Mode().Perm(), path)
				return nil
			}))
		})
	}
}

func TestRun_OverTLSAndUnixSockets(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	source := pgtest.Start(t, pgtest.Options{
		Settings: map[string]string{"ssl": "on", "ssl_cert_file": cert, "ssl_key_file": key},
		HBA:      []string{"hostssl replication all all trust", "host replication all all reject"},
	})
	filled(t, source)
	for name, conninfo := range map[string]string{
		"TLS":    source.Conninfo("sslmode=verify-ca", "sslrootcert="+cert),
		"socket": source.Conninfo("host="+source.SocketDir, "sslmode=disable"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			_, err := basebackup.Run(t.Context(), config(t, conninfo), basebackup.Options{Dir: dir, FastCheckpoint: true})
			require.NoError(t, err)
			s := pgtest.StartDir(t, dir, pgtest.Options{BinDir: source.BinDir}) // on its own: all the WAL it needs is there
			require.Equal(t, "200000", s.QueryString(t, "SELECT count(*)::text FROM filler"))
			s.Stop("immediate")
		})
	}
}

// certificate makes a self-signed one for localhost.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	certDER, err := x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return cert, key
}

// After a write that took long pgconn has a reader of its own in the socket. It
// must not take the answer to our first command away.
func TestRun_SlowLogin(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	cfg := config(t, primary.Conninfo("sslmode=disable"))
	dial := cfg.DialFunc
	var slow atomic.Int32
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return &slowWriter{Conn: c, reads: make(chan struct{}, 2), slow: &slow}, err
	}
	_, err := basebackup.Run(t.Context(), cfg, basebackup.Options{Dir: filepath.Join(t.TempDir(), "copy"), FastCheckpoint: true, NoSync: true})
	require.NoError(t, err)
	require.Positive(t, slow.Load(), "a login was slow")
}

// slowWriter returns from its first write when somebody waits for what comes
// after the answer to it.
type slowWriter struct {
	net.Conn
	reads chan struct{}
	wrote bool
	slow  *atomic.Int32
}

func (c *slowWriter) Read(b []byte) (int, error) {
	select {
	case c.reads <- struct{}{}:
	default: // only the first two count
	}
	return c.Conn.Read(b)
}

func (c *slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if !c.wrote {
		c.wrote = true
		for range 2 {
			select {
			case <-c.reads:
				c.slow.Add(1)
			case <-time.After(5 * time.Second):
			}
		}
	}
	return n, err
}

func TestRun_OptionsAreCheckedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := basebackup.Run(t.Context(), nil, basebackup.Options{MaxRate: 1, Slot: "No", NoSlot: true, Manifest: "MD5", Label: "\x00"})
	for _, want := range []string{"Dir is empty", "MaxRate is 1", "NoSlot", "Manifest", "Label", "Slot: "} {
		require.ErrorContains(t, err, want)
	}
}

func TestRun_LabelsNeedNoCare(t *testing.T) {
	t.Parallel()
	source := pgtest.Start(t, pgtest.Options{})
	label := `it's "quoted"; \ and 'more' – ünïcode`
	dir := filepath.Join(t.TempDir(), "copy")
	clone(t, source, basebackup.Options{Dir: dir, Label: label, NoSync: true})
	b, err := os.ReadFile(filepath.Join(dir, "backup_label"))
	require.NoError(t, err)
	require.Contains(t, string(b), "LABEL: "+label+"\n")
}
