package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// entries are the names in a directory; none where there is no directory.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// Every Cloner makes the same standby: tablespaces moved, slot used, rows there. What
// was the source's own stays there: its vote, its pause, the rule that it was told of,
// what was put in force on it for a while, the mark of a fence.
func TestClone_EveryMethod(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t, func(c *repmgr.Config) { c.UseReplicationSlots = true })
	space := filepath.Join(t.TempDir(), "space")
	require.NoError(t, os.Mkdir(space, 0o700))
	node1.Exec(t, fmt.Sprintf(`CREATE TABLESPACE extra LOCATION '%s'`, space))
	node1.Exec(t, `CREATE TABLE here AS SELECT generate_series(1, 5000) AS n`)
	node1.Exec(t, `CREATE TABLE there TABLESPACE extra AS SELECT generate_series(1, 5000) AS n`)
	w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: []string{node1.Conninfo()}})

	auto := filepath.Join(node1.Dir, "postgresql.auto.conf")
	text, err := os.ReadFile(auto)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(auto, append(text, `repmgr.ballot = '1/7/node1.1'
repmgr.paused = '1/on/3'
repmgr.rule = '{"term": 7}'
repmgr.sync = 'ANY 1 (node9)'
restore_command = ''
repmgr.saved_restore_command = '=cp "/archive\\a''s/%f" %p'
wal_receiver_timeout = '1'
repmgr.saved_wal_receiver_timeout = ''
work_mem = '5MB'
`...), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(node1.Dir, "repmgr_fenced"), []byte("x"), 0o600))

	methods := map[string]func(*testing.T, *repmgr.Config){
		"basebackup": func(*testing.T, *repmgr.Config) {},
		"rsync": func(t *testing.T, c *repmgr.Config) {
			sshd := pgtest.StartSSHD(t)
			c.CloneMethod = repmgr.CloneRsync
			c.SSHOptions = sshOptions(sshd)
		},
		"command": func(t *testing.T, c *repmgr.Config) {
			pgtest.NeedPrograms(t, "pg_basebackup")
			c.CloneMethod = repmgr.CloneCommand
			c.CloneCommand = filepath.Join(node1.BinDir, "pg_basebackup") +
				` -h %h -p %p -U %U -D "%D" -c fast -T '` + space + `'="$(dirname "$(dirname "$(dirname "%D")")")/moved"`
		},
	}
	id := repmgr.NodeID(2)
	for name, change := range methods {
		nodeID := id
		id++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var moved string
			n := prepareStandby(t, node1, nodeID, func(c *repmgr.Config) {
				c.UseReplicationSlots = true
				change(t, c)
				moved = filepath.Join(t.TempDir(), "moved")
				c.TablespaceMapping = map[string]string{space: moved}
			})
			if name == "command" { // the command puts it beside the data directory
				moved = filepath.Join(filepath.Dir(n.Dir), "moved")
			}
			last := repmgr.CopyProgress{}
			res, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: n.Dir, FastCheckpoint: true, Progress: func(p repmgr.CopyProgress) { last = p }})
			require.NoError(t, err)
			require.NotEmpty(t, last.Phase)
			require.Equal(t, fmt.Sprintf("repmgr_slot_%d", nodeID), res.Slot)
			require.Equal(t, `node "node1" (ID: 1)`, res.Upstream)
			require.NotContains(t, entries(t, n.Dir), ".repmgr-clone")
			require.NotContains(t, entries(t, n.Dir), "repmgr_fenced")
			n.Start(t)
			require.Equal(t, `repmgr.sync=ANY 1 (node9); restore_command=cp "/archive\a's/%f" %p; work_mem=5MB`,
				n.QueryString(t, `SELECT string_agg(name || '=' || setting, '; ' ORDER BY name) FROM pg_file_settings WHERE sourcefile ~ 'auto.conf' AND name ~ '^repmgr\.|^restore_command|^wal_receiver_timeout|^work_mem'`))
			_, err = n.RegisterStandby(t.Context(), repmgr.RegisterOptions{})
			require.NoError(t, err)
			w.WaitForMore(t, 5)
			waitSame(t, node1, n)
			require.Equal(t, "5000 5000", n.QueryString(t, `SELECT (SELECT count(*) FROM here) || ' ' || (SELECT count(*) FROM there)`))
			require.Equal(t, moved, n.QueryString(t, `SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'`))
			require.Equal(t, "t", node1.QueryString(t, `SELECT active::text::bool FROM pg_replication_slots WHERE slot_name = '`+res.Slot+`'`))
			require.Equal(t, "streaming", node1.view(t, nodeID).Attached)
		})
	}
}

func sshOptions(s *pgtest.SSHD) (options string) {
	for _, o := range s.Options {
		options += o + " "
	}
	return options
}

// What a clone may not touch, it does not; what it made, it takes away again.
func TestClone_TouchesOnlyWhatIsItsOwn(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	ctx := t.Context()
	clone := func(dir string, o repmgr.CloneOptions) error {
		n := newNode(t, 2, node1.Server)
		o.Source, o.Dir, o.FastCheckpoint = node1.Conninfo(), dir, true
		_, err := n.Clone(ctx, o)
		return err
	}

	mine := filepath.Join(t.TempDir(), "mine")
	require.NoError(t, os.MkdirAll(filepath.Join(mine, "photos"), 0o700))
	requireError(t, clone(mine, repmgr.CloneOptions{}), repmgr.ErrDirectory, mine, "not empty", "photos")
	requireError(t, clone(mine, repmgr.CloneOptions{Force: true}), repmgr.ErrDirectory, "not a PostgreSQL data directory")
	require.Equal(t, []string{"photos"}, entries(t, mine))

	requireError(t, clone(node1.Dir, repmgr.CloneOptions{Force: true}), repmgr.ErrDirectory, "a server runs in")

	locked := filepath.Join(t.TempDir(), "locked")
	require.NoError(t, os.Mkdir(locked, 0o500))
	requireError(t, clone(filepath.Join(locked, "data"), repmgr.CloneOptions{}), repmgr.ErrDirectory, locked, "not writable")

	// Somebody runs ./repmgr in the directory that shall become the data directory.
	here := filepath.Join(t.TempDir(), "here")
	require.NoError(t, os.Mkdir(here, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(here, "repmgr"), []byte("#!/bin/true"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(here, "repmgr.conf"), nil, 0o600))
	require.NoError(t, clone(here, repmgr.CloneOptions{DryRun: true}))
	require.Equal(t, []string{"repmgr", "repmgr.conf"}, entries(t, here))
	require.NoError(t, clone(here, repmgr.CloneOptions{}))
	require.Contains(t, entries(t, here), "standby.signal")

	// A stopped server's directory: only with force.
	requireError(t, clone(here, repmgr.CloneOptions{}), repmgr.ErrDirectory, "not empty")
	require.NoError(t, os.WriteFile(filepath.Join(here, "base", "old"), nil, 0o600))
	require.NoError(t, clone(here, repmgr.CloneOptions{Force: true}))
	require.NotContains(t, entries(t, filepath.Join(here, "base")), "old")
}

// failing is a Cloner that stops after it has copied something.
type failing struct{ fail func(repmgr.CopyJob) error }

func (f failing) Copy(_ context.Context, job repmgr.CopyJob) error {
	if err := os.WriteFile(filepath.Join(job.Dir, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		return err
	}
	return f.fail(job)
}

func TestClone_LeavesNothingWhenItFails(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	n := prepareStandby(t, node1, 2, func(c *repmgr.Config) { c.UseReplicationSlots = true })
	outside := filepath.Join(t.TempDir(), "outside")
	o := repmgr.CloneOptions{Source: node1.Conninfo(), Dir: n.Dir, FastCheckpoint: true, Cloner: failing{func(job repmgr.CopyJob) error {
		require.NoError(t, job.Claim(outside))
		require.NoError(t, os.WriteFile(filepath.Join(outside, "half"), nil, 0o600))
		return errors.New("the tape broke")
	}}}
	_, err := n.Clone(t.Context(), o)
	requireError(t, err, repmgr.ErrCopy, "the tape broke", n.Dir)
	require.Empty(t, entries(t, n.Dir))
	require.NoDirExists(t, outside)
	require.Equal(t, "0", node1.QueryString(t, `SELECT count(*) FROM pg_replication_slots`), "a slot would keep WAL for ever")

	// Stopped in the middle, as by SIGINT.
	ctx, cancel := context.WithCancelCause(t.Context())
	o.Cloner = failing{func(repmgr.CopyJob) error { cancel(errors.New("interrupted")); return context.Cause(ctx) }}
	_, err = n.Clone(ctx, o)
	require.ErrorIs(t, err, repmgr.ErrCopy)
	require.ErrorContains(t, err, "interrupted")
	require.Empty(t, entries(t, n.Dir))
	require.Equal(t, "0", node1.QueryString(t, `SELECT count(*) FROM pg_replication_slots`))

	// The copy of another cluster.
	o.Cloner = failing{func(job repmgr.CopyJob) error {
		return os.CopyFS(job.Dir, os.DirFS(pgtest.Start(t, pgtest.Options{Fresh: true}).Dir))
	}}
	_, err = n.Clone(t.Context(), o)
	require.Error(t, err)
	require.Empty(t, entries(t, n.Dir))
}

// killed is what a clone leaves that was killed in the middle: a staging
// directory with a journal.
func killed(t *testing.T, dir, journal string) {
	t.Helper()
	staging := filepath.Join(dir, ".repmgr-clone")
	require.NoError(t, os.MkdirAll(filepath.Join(staging, "data", "base"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(staging, "journal"), []byte(journal), 0o600))
}

func claim(t *testing.T, dir string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "PG_15"), 0o700))
	var st syscall.Stat_t
	require.NoError(t, syscall.Stat(dir, &st))
	return fmt.Sprintf("made %d:%d %q\n", st.Dev, st.Ino, dir)
}

// A clone that was killed leaves what can not be started; the next one clears it away.
func TestClone_ClearsAwayAKilledOne(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	space, outside := filepath.Join(t.TempDir(), "space"), filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.Mkdir(space, 0o700))
	node1.Exec(t, fmt.Sprintf(`CREATE TABLESPACE extra LOCATION '%s'`, space))
	n := prepareStandby(t, node1, 2, func(c *repmgr.Config) { c.TablespaceMapping = map[string]string{space: outside} })
	killed(t, n.Dir, claim(t, outside))
	_, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: n.Dir, FastCheckpoint: true})
	require.NoError(t, err)
	require.Len(t, entries(t, outside), 1)
	n.Start(t)
}

// The journal of a killed clone never takes away what is not that clone's.
func TestClone_JournalIsNotBelievedBlindly(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	n := prepareStandby(t, node1, 2)
	root := t.TempDir()
	mine := filepath.Join(root, "mine")
	line := claim(t, mine)
	another := strings.Replace(line, ":", ":9", 1) // another directory took the name since
	cut := strings.TrimSuffix(line, "\n")
	short := fmt.Sprintf("made %s %q", strings.Fields(line)[1], root) // cut off, and no newline
	for name, journal := range map[string]string{"another inode": another, "no newline": cut, "shorter": short, "old form": "made " + mine + "\n", "noise": "\n\x00made\n"} {
		killed(t, n.Dir, journal)
		_, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: n.Dir, FastCheckpoint: true, Cloner: failing{func(repmgr.CopyJob) error { return errors.New("no") }}})
		require.ErrorIs(t, err, repmgr.ErrCopy, name)
		require.DirExists(t, filepath.Join(mine, "PG_15"), name)
	}
}

// What appears in the directory while the copy runs is not overwritten.
func TestClone_LeavesWhatAppearsMeanwhile(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	n := prepareStandby(t, node1, 2)
	require.NoError(t, os.MkdirAll(n.Dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(n.Dir, "repmgr.conf"), []byte("mine"), 0o600))
	_, err := n.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: n.Dir, FastCheckpoint: true, Cloner: failing{func(job repmgr.CopyJob) error {
		require.NoError(t, os.Remove(filepath.Join(job.Dir, "PG_VERSION")))
		require.NoError(t, os.CopyFS(job.Dir, os.DirFS(node1.Dir)))
		require.NoError(t, os.WriteFile(filepath.Join(job.Dir, "repmgr.conf"), []byte("theirs"), 0o600))
		return os.WriteFile(filepath.Join(n.Dir, "PG_VERSION"), []byte("somebody's"), 0o600)
	}}})
	require.ErrorIs(t, err, repmgr.ErrCopy)
	require.ErrorContains(t, err, "PG_VERSION has appeared")
	require.Equal(t, []string{"PG_VERSION", "repmgr.conf"}, entries(t, n.Dir))
	text, err := os.ReadFile(filepath.Join(n.Dir, "repmgr.conf"))
	require.NoError(t, err)
	require.Equal(t, "mine", string(text))
}

func TestClone_PreflightNamesEveryFault(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	minimal := newNode(t, 2, pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_level": "minimal", "max_wal_senders": "0"}}))
	dir := filepath.Join(t.TempDir(), "data")
	res, err := minimal.Clone(ctx, repmgr.CloneOptions{Source: minimal.Conninfo(), Dir: dir})
	requireError(t, err, repmgr.ErrRefused, "wal_level", "minimal", "max_wal_senders", "replication connection")
	require.NotEmpty(t, res.Checks)
	require.NoDirExists(t, dir)

	small := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_wal_senders": "1"}})
	node := newNode(t, 2, small)
	_, err = node.Clone(ctx, repmgr.CloneOptions{Source: small.Conninfo(), Dir: dir})
	requireError(t, err, repmgr.ErrRefused, "max_wal_senders", "1 of max_wal_senders = 1 are free")

	// A source that is larger than what is free here: a sparse file makes it so.
	big := pgtest.Start(t, pgtest.Options{})
	relation, err := os.Create(filepath.Join(big.Dir, "base", pgtest.Query[string](t, big, `SELECT oid::text FROM pg_database WHERE datname = 'postgres'`), "999999"))
	require.NoError(t, err)
	require.NoError(t, relation.Truncate(1<<42))
	require.NoError(t, relation.Close())
	_, err = newNode(t, 2, big).Clone(ctx, repmgr.CloneOptions{Source: big.Conninfo(), Dir: dir})
	requireError(t, err, repmgr.ErrDirectory, "space", "needed", "free")

	hba := pgtest.Start(t, pgtest.Options{HBA: []string{"host replication all 127.0.0.1/32 reject"}})
	_, err = newNode(t, 2, hba).Clone(ctx, repmgr.CloneOptions{Source: hba.Conninfo(), Dir: dir})
	requireError(t, err, repmgr.ErrRefused, "replication connection", "pg_hba.conf")

	node1 := startPrimary(t)
	taken := newNode(t, 2, node1.Server, func(c *repmgr.Config) { c.NodeName = "node1" })
	_, err = taken.Clone(ctx, repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir})
	requireError(t, err, repmgr.ErrRefused, "identity", "node1")
	_, err = newNode(t, 2, node1.Server).Clone(ctx, repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir, UpstreamID: 8})
	requireError(t, err, repmgr.ErrNotRegistered, "8")
	_, err = newNode(t, 1, node1.Server).Clone(ctx, repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir})
	requireError(t, err, repmgr.ErrRefused, "identity", "its own standby")
	_, err = newNode(t, 2, node1.Server).Clone(ctx, repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir, RecoveryMinApplyDelay: "soon"})
	requireError(t, err, repmgr.ErrConfig, "recovery_min_apply_delay", "soon")
	_, err = newNode(t, 2, node1.Server, func(c *repmgr.Config) { c.SSHOptions = "-p 1 -o ConnectTimeout=1" }).
		Clone(ctx, repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir, Method: repmgr.CloneRsync})
	requireError(t, err, repmgr.ErrRefused, "clone method", "without a password")
	_, err = newNode(t, 2, node1.Server).Clone(ctx, repmgr.CloneOptions{Source: node1.Conninfo(), Dir: dir, Method: repmgr.CloneCommand})
	requireError(t, err, repmgr.ErrConfig, "clone_command")
	require.NoDirExists(t, dir)
}

// Without a configuration, as in the manual: a source and a directory are enough.
func TestClone_WithoutConfiguration(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	c, err := repmgr.New(repmgr.Config{Logger: testLogger(t)})
	require.NoError(t, err)
	n := prepareStandby(t, node1, 2)
	_, err = c.Clone(t.Context(), repmgr.CloneOptions{Source: node1.Conninfo(), Dir: n.Dir, FastCheckpoint: true, LocalPort: n.Port})
	require.NoError(t, err)
	n.Start(t)
	// It streams under no name of ours yet; registering gives it its own.
	_, err = n.RegisterStandby(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	require.Equal(t, "node1", node1.view(t, 2).Upstream)
}

// The replication settings alone, into a directory that is there.
func TestClone_ReplicationConfOnly(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	o := repmgr.CloneOptions{Source: node1.Conninfo(), Dir: node3.Dir, ReplicationConfOnly: true, UpstreamID: 2}
	_, err := node3.Clone(t.Context(), o)
	require.ErrorIs(t, err, repmgr.ErrDirectory)
	o.Force = true
	_, err = node3.Clone(t.Context(), o)
	require.NoError(t, err)
	node3.Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "node3 to stream from node2", func(ctx context.Context) error { return node2.StreamsTo(ctx, "node3") })
}

// A slot whose WAL is gone holds nothing and lets nobody stream: it is made anew.
func TestClone_ReplacesALostSlot(t *testing.T) {
	t.Parallel()
	slots := func(c *repmgr.Config) { c.UseReplicationSlots = true }
	server := pgtest.Start(t, pgtest.Options{Name: "node1", WALSegmentSizeMB: 1, Settings: map[string]string{"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0", "max_wal_size": "2MB", "min_wal_size": "2MB"}})
	node1 := newNode(t, 1, server, slots)
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node1.Exec(t, `SELECT pg_create_physical_replication_slot('repmgr_slot_2', true)`)
	pgtest.WaitFor(t, "slot to be lost", func(context.Context) error {
		node1.Exec(t, `CREATE TABLE x AS SELECT generate_series(1, 20000) a; DROP TABLE x; SELECT pg_switch_wal()`)
		node1.Exec(t, `CHECKPOINT`)
		if status := node1.QueryString(t, `SELECT wal_status FROM pg_replication_slots`); status != "lost" {
			return errors.New(status)
		}
		return nil
	})
	node1.Exec(t, `ALTER SYSTEM SET max_slot_wal_keep_size = -1`)
	node1.Exec(t, `SELECT pg_reload_conf()`)
	node2 := addStandby(t, node1, 2, slots)
	require.Equal(t, "node1", node2.view(t, 2).Upstream)
}
