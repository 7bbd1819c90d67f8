package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/wal"
)

// formerPrimary is node2 promoted, node3 behind it, and node1, the former
// primary, down: killed, with rows that no other node has, or shut down in order.
type formerPrimary struct{ node1, node2, node3 *node }

const agentPassword = "s3cret word"

func withSlots(c *repmgr.Config) { c.UseReplicationSlots, c.UsePrimaryConninfoPassword = true, true }

// failOver makes it. end is how node1 goes; change comes before its standbys are
// made. With lines for pg_hba.conf, repmgr logs in as agent.
func failOver(t *testing.T, o pgtest.Options, end func(t *testing.T, c formerPrimary), change ...func(*pgtest.Server)) formerPrimary {
	t.Helper()
	needRejoin(t)
	o.Name = "node1"
	server := pgtest.Start(t, o)
	for _, f := range change {
		f(server)
	}
	login := func(c *repmgr.Config) {
		if len(o.HBA) > 0 {
			c.Conninfo += " user=agent password='" + agentPassword + "'"
		}
	}
	node1 := newNode(t, 1, server, withSlots, login, func(c *repmgr.Config) { c.DataDirectory = server.Dir })
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node1.Exec(t, `CREATE TABLE t AS SELECT generate_series(1, 1000) AS id`)
	c := formerPrimary{node1, addStandby(t, node1, 2, withSlots, login), addStandby(t, node1, 3, withSlots, login)}
	waitSame(t, node1, c.node2)
	waitSame(t, node1, c.node3)
	end(t, c)
	_, err = c.node2.Promote(t.Context(), repmgr.PromoteOptions{SiblingsFollow: true})
	require.NoError(t, err)
	c.node2.Exec(t, `INSERT INTO t SELECT generate_series(3001, 3100)`)
	return c
}

// needRejoin skips where what a rejoin runs is not there.
func needRejoin(t *testing.T) {
	t.Helper()
	pgtest.NeedPrograms(t, "pg_rewind", "pg_waldump", "pg_checksums")
}

func shutDown(t *testing.T, c formerPrimary) { c.node1.Stop("fast") }
func crash(t *testing.T, c formerPrimary)    { c.node1.Kill() }

// preallocate leaves a segment that holds nothing yet, as servers do.
func preallocate(t *testing.T, n *node) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(n.Dir, "pg_wal", "0000000100000000000000FF"), make([]byte, 16<<20), 0o600))
}

// crashWithRows lets node1 commit what nobody else gets, and then crash.
func crashWithRows(t *testing.T, c formerPrimary) {
	leaveAlone(t, c)
	c.node1.Exec(t, `INSERT INTO t SELECT generate_series(2001, 2100)`)
	c.node1.Exec(t, `DELETE FROM t WHERE id = 2001`)
	c.node1.Exec(t, `SELECT pg_switch_wal()`)
	c.node1.Kill()
}

// leaveAlone ends the streams of both standbys while node1 goes on.
func leaveAlone(t *testing.T, c formerPrimary) {
	t.Helper()
	for _, n := range []*node{c.node2, c.node3} {
		n.Exec(t, `ALTER SYSTEM SET primary_conninfo = ''`)
		n.Exec(t, `SELECT pg_reload_conf()`)
	}
	pgtest.WaitFor(t, "the standbys to leave", func(context.Context) error {
		if n := c.node1.QueryString(t, `SELECT count(*) FROM pg_stat_replication`); n != "0" {
			return fmt.Errorf("%s are there", n)
		}
		return nil
	})
}

// rejoin runs it on node1, and shows how long it took. What a dry run says before is
// what it does, and why.
func (c formerPrimary) rejoin(t *testing.T, o repmgr.RejoinOptions) (repmgr.RejoinResult, error) {
	t.Helper()
	if o.Target == "" {
		o.Target = c.node3.Conninfo() // any node that can be reached
	}
	beforehand := o
	beforehand.DryRun = true
	dry, errDry := c.node1.Rejoin(t.Context(), beforehand)
	res, err := c.node1.Rejoin(t.Context(), o)
	if err == nil && res.Method != "" {
		require.NoError(t, errDry)
		require.Equal(t, []string{string(res.Method), res.Reason}, []string{string(dry.Method), dry.Reason})
	}
	for _, s := range res.Steps {
		t.Logf("%-12s %8.1f ms  %s", s.Name, float64(s.Elapsed.Microseconds())/1000, s.Detail)
	}
	t.Logf("rejoin by %q: %d ms", res.Method, res.Elapsed.Milliseconds())
	return res, err
}

// requireEqualEverywhere wants node1 to stream from node2 and all to hold the same.
func (c formerPrimary) requireEqualEverywhere(t *testing.T) {
	t.Helper()
	c.node2.Exec(t, `INSERT INTO t VALUES (9999)`)
	const sum = `SELECT count(*) || ' ' || sum(id) || ' ' || md5(string_agg(id::text, ',' ORDER BY id)) FROM t`
	want := c.node2.QueryString(t, sum)
	for _, n := range []*node{c.node1, c.node3} {
		waitSame(t, c.node2, n)
		require.Equal(t, want, n.QueryString(t, sum), n.cfg.NodeName)
		require.Equal(t, "node2", c.node2.view(t, n.cfg.NodeID).Upstream)
	}
	require.Equal(t, "standby true", c.node2.QueryString(t, `SELECT type || ' ' || active FROM repmgr.nodes WHERE node_id = 1`))
	require.NoDirExists(t, c.node1.Dir+".salvage/incomplete-node1")
}

// What was shut down in order has nothing of its own: it just follows.
func TestRejoin_CleanShutdownFollows(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, shutDown)
	res, err := c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByFollow, res.Method)
	require.False(t, c.node1.Started())

	res, err = c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByFollow, res.Method)
	require.True(t, res.Streaming)
	require.Nil(t, res.Salvage)
	require.NoDirExists(t, c.node1.Dir+".salvage")
	c.requireEqualEverywhere(t)
	require.Equal(t, "0", c.node1.QueryString(t, `SELECT count(*) FROM pg_replication_slots`), "a standby keeps no WAL for others")
	require.Equal(t, "repmgr_slot_1:true repmgr_slot_3:true", c.node2.QueryString(t, `SELECT string_agg(slot_name || ':' || active, ' ' ORDER BY slot_name) FROM pg_replication_slots`))
	require.True(t, c.node1.events.wait(t, repmgr.EventNodeRejoin).Success)

	up := c.node1.QueryString(t, `SELECT pg_postmaster_start_time()`)
	res, err = c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByFollow, res.Method)
	require.Equal(t, up, c.node1.QueryString(t, `SELECT pg_postmaster_start_time()`), "twice is harmless")
	c.requireEqualEverywhere(t)
}

// A crash alone is no divergence: without WAL of its own a node needs no pg_rewind.
func TestRejoin_CrashedButNotDivergedFollows(t *testing.T) {
	t.Parallel()
	// A slow machine must not recycle what the node asks for between its death and its return.
	c := failOver(t, pgtest.Options{Settings: map[string]string{"wal_keep_size": "128MB"}}, crash)
	res, err := c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByFollow, res.Method)
	c.requireEqualEverywhere(t)
}

// Rows that only the crashed primary had are saved, named, and taken back. The
// node keeps its ballot, its pause and its own settings.
func TestRejoin_DivergedRewinds(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}}, crashWithRows)
	auto := filepath.Join(c.node1.Dir, "postgresql.auto.conf")
	own, err := os.ReadFile(auto)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(auto, append(own, "repmgr.ballot = '1/7/node2.1'\nrepmgr.paused = '1/on'\nwork_mem = '5MB'\n"...), 0o600))
	conn := c.node2.Conn(t)
	for _, sql := range []string{`SET repmgr.ballot = ''`, `ALTER SYSTEM SET repmgr.ballot = '2/8/node2.2'`} {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(c.node1.Dir, "mine.conf"), []byte("# mine\n"), 0o600))
	hba, err := os.ReadFile(filepath.Join(c.node1.Dir, "pg_hba.conf"))
	require.NoError(t, err)
	hba = append(hba, "# node1's own\n"...)
	require.NoError(t, os.WriteFile(filepath.Join(c.node1.Dir, "pg_hba.conf"), hba, 0o600))

	preallocate(t, c.node1)
	_, err = c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinNever})
	requireError(t, err, repmgr.ErrRefused, "never")
	_, err = c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean})
	requireError(t, err, repmgr.ErrTimelineDiverged, "node1", "timeline 1")
	require.Contains(t, repmgr.Hint(err), "--force-rewind")
	require.NoFileExists(t, filepath.Join(c.node1.Dir, "standby.signal"), "a refusal changes nothing")

	res, err := c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	c.requireEqualEverywhere(t)
	for name, want := range map[string]string{"repmgr.ballot": "1/7/node2.1", "repmgr.paused": "1/on", "work_mem": "5MB"} {
		require.Equal(t, want, c.node1.QueryString(t, `SELECT setting FROM pg_file_settings WHERE name = $1 ORDER BY seqno DESC LIMIT 1`, name))
	}
	now, err := os.ReadFile(filepath.Join(c.node1.Dir, "pg_hba.conf"))
	require.NoError(t, err)
	require.Equal(t, string(hba), string(now))
	require.FileExists(t, filepath.Join(c.node1.Dir, "mine.conf"))
	info, err := os.Stat(c.node1.Dir)
	require.NoError(t, err)
	require.EqualValues(t, 0o700, info.Mode().Perm())

	require.NotNil(t, res.Salvage)
	require.Len(t, res.Salvage.Commits, 2, "an INSERT and a DELETE")
	require.Positive(t, res.Salvage.Bytes)
	require.NotEmpty(t, res.Salvage.Segments)
	require.NotEmpty(t, res.Salvage.Unarchived, "its archive_command never worked")
	for _, name := range slices.Concat(res.Salvage.Segments, res.Salvage.Unarchived) {
		require.FileExists(t, filepath.Join(res.Salvage.Dir, "pg_wal", name))
	}
	summary, err := os.ReadFile(filepath.Join(res.Salvage.Dir, "summary.txt"))
	require.NoError(t, err)
	require.Contains(t, string(summary), res.Salvage.Commits[0])
	dump, err := os.ReadFile(filepath.Join(res.Salvage.Dir, "waldump.txt"))
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(dump), "desc: COMMIT"))
	require.Contains(t, c.node1.events.wait(t, repmgr.EventNodeRejoin).Details, "2 transactions")
}

// The node's own crash recovery must not recycle what pg_rewind needs.
func TestRejoin_WithoutWALKeepSize(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{Settings: map[string]string{"wal_keep_size": "0", "min_wal_size": "32MB", "max_wal_size": "48MB"}, WALSegmentSizeMB: 1}, crashWithRows)
	c.node2.Exec(t, `INSERT INTO t SELECT generate_series(10001, 20000)`)
	res, err := c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	c.requireEqualEverywhere(t)
}

// Where pg_rewind can not help, the error says so and changes nothing, and the
// policy reclone copies anew, with the node's own ballot kept.
func TestRejoin_RewindImpossible(t *testing.T) {
	t.Parallel()
	noChecksums := func(s *pgtest.Server) {
		s.Stop("fast")
		out, err := exec.Command(filepath.Join(s.BinDir, "pg_checksums"), "--disable", "-D", s.Dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
		s.StartAgain()
	}
	recycled := func(t *testing.T, c formerPrimary) {
		leaveAlone(t, c)
		c.node1.Exec(t, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
		for range 10 {
			c.node1.Exec(t, `INSERT INTO t VALUES (2001); SELECT pg_switch_wal()`)
		}
		for range 2 {
			c.node1.Exec(t, `CHECKPOINT`)
		}
		c.node1.Kill()
	}
	noWAL := func(t *testing.T, c formerPrimary) {
		crashWithRows(t, c)
		segments, err := filepath.Glob(filepath.Join(c.node1.Dir, "pg_wal", "0000000100000000*"))
		require.NoError(t, err)
		for _, f := range segments {
			require.NoError(t, os.Remove(f))
		}
	}
	for name, tc := range map[string]struct {
		o      pgtest.Options
		end    func(*testing.T, formerPrimary)
		change func(*pgtest.Server)
		want   string
	}{
		"no hints and no checksums":  {pgtest.Options{Settings: map[string]string{"wal_log_hints": "off"}}, crashWithRows, noChecksums, "wal_log_hints"},
		"the fork is recycled":       {pgtest.Options{Settings: map[string]string{"max_wal_size": "2MB", "min_wal_size": "2MB"}, WALSegmentSizeMB: 1}, recycled, func(*pgtest.Server) {}, "pg_rewind"},
		"not even a checkpoint left": {pgtest.Options{}, noWAL, func(*pgtest.Server) {}, "checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := failOver(t, tc.o, tc.end, tc.change)
			_, err := c.rejoin(t, repmgr.RejoinOptions{})
			requireError(t, err, repmgr.ErrRejoin, tc.want, "node1")
			require.Contains(t, repmgr.Hint(err), "--reclone")
			require.False(t, c.node1.Started())

			auto := filepath.Join(c.node1.Dir, "postgresql.auto.conf")
			own, err := os.ReadFile(auto)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(auto, append(own, "repmgr.ballot = '1/7/node2.1'\n"...), 0o600))
			res, err := c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinReclone})
			require.NoError(t, err)
			require.Equal(t, repmgr.RejoinByClone, res.Method)
			c.requireEqualEverywhere(t)
			require.Equal(t, "1/7/node2.1", c.node1.QueryString(t, `SELECT setting FROM pg_file_settings WHERE name = 'repmgr.ballot'`))
		})
	}
}

// A primary that has recycled what the node would ask for is noticed beforehand.
func TestRejoin_PrimaryHasRecycledTheWAL(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{Settings: map[string]string{"max_wal_size": "2MB", "min_wal_size": "2MB"}, WALSegmentSizeMB: 1}, shutDown)
	for range 10 {
		c.node2.Exec(t, `INSERT INTO t VALUES (4001); SELECT pg_switch_wal()`)
	}
	waitSame(t, c.node2, c.node3)
	pgtest.WaitFor(t, "the WAL to be recycled", func(context.Context) error {
		c.node2.Exec(t, `CHECKPOINT`)
		if n := c.node2.QueryString(t, `SELECT count(*) FROM pg_ls_waldir() WHERE length(name) = 24 AND name <= (SELECT '00000002' || substr(pg_walfile_name('0/D00000'), 9))`); n != "0" {
			return fmt.Errorf("%s segments are there", n)
		}
		return nil
	})
	_, err := c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean})
	requireError(t, err, repmgr.ErrRejoin, "node2", "does not have the WAL")
	require.Contains(t, repmgr.Hint(err), "--reclone")
	res, err := c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinReclone})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByClone, res.Method)
	require.Nil(t, res.Salvage)
	c.requireEqualEverywhere(t)
}

// The primary is lost when pg_rewind is done with a node, whose server then lets nobody in, because the rest of the WAL that it needs
// is to come from that primary: it comes from the other standby, and both elect the next primary.
func TestRejoin_SourceIsLostAfterTheRewind(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	bin := t.TempDir()
	require.NoError(t, os.Chmod(bin, 0o755))
	programs, err := filepath.Glob(filepath.Join(nodes[2].BinDir, "*"))
	require.NoError(t, err)
	for _, p := range programs {
		require.NoError(t, os.Symlink(p, filepath.Join(bin, filepath.Base(p))))
	}
	rewound, goOn := filepath.Join(bin, "rewound"), filepath.Join(bin, "go-on")
	script := fmt.Sprintf("#!/bin/sh\n%s \"$@\" || exit\ntouch %s\nuntil [ -e %s ]; do sleep .01; done\n", filepath.Join(nodes[2].BinDir, "pg_rewind"), rewound, goOn)
	require.NoError(t, os.Remove(filepath.Join(bin, "pg_rewind")))
	require.NoError(t, os.WriteFile(filepath.Join(bin, "pg_rewind"), []byte(script), 0o700))
	nodes[2].cfg.PgBindir = bin
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	nodes[2].Exec(t, `SELECT pg_promote(false)`) // by hand
	pgtest.WaitFor(t, "node3 to be rewound", func(context.Context) error {
		_, err := os.Stat(rewound)
		return err
	})
	nodes[0].Exec(t, `CREATE TABLE since (i int)`)
	waitSame(t, nodes[0], nodes[1])
	nodes[0].Kill()
	require.NoError(t, os.WriteFile(goOn, nil, 0o600))
	require.Equal(t, nodes[1], waitPrimary(t, nodes[1]))
	nodes[1].Exec(t, `CREATE TABLE later (i int)`)
	waitSame(t, nodes[1], nodes[2])
	pgtest.WaitFor(t, "the rejoin to be over", func(context.Context) error {
		if _, err := os.Stat(filepath.Join(nodes[2].Dir, "repmgr_rejoining")); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("its mark is there, %w", err)
		}
		return nil
	})
}

// pg_rewind that is killed in the middle leaves data that nobody can start: not
// we, not pg_ctl. A new clone helps.
func TestRejoin_InterruptedRewindIsNotStarted(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	fake := filepath.Join(t.TempDir(), "pg_rewind")
	script := fmt.Sprintf("#!/bin/sh\nrm -f %s/standby.signal\nkill -9 $$\n", c.node1.Dir) // as pg_rewind does it
	require.NoError(t, os.WriteFile(fake, []byte(script), 0o700))
	_, err := c.rejoin(t, repmgr.RejoinOptions{PgRewind: fake})
	requireError(t, err, repmgr.ErrRejoin, "interrupted", "node1")

	err = c.node1.TryStart()
	require.ErrorContains(t, err, "permissions", "PostgreSQL itself refuses the data")
	_, err = c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean})
	requireError(t, err, repmgr.ErrRejoin, "interrupted", "can not be used")
	require.Contains(t, repmgr.Hint(err), "--reclone")
	require.False(t, c.node1.Started())

	res, err := c.rejoin(t, repmgr.RejoinOptions{}) // nothing else helps
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByClone, res.Method)
	c.requireEqualEverywhere(t)
	saved, err := filepath.Glob(c.node1.Dir + ".salvage/*/summary.txt")
	require.NoError(t, err)
	require.Len(t, saved, 1)
}

// A running primary is nobody's former primary, until an operator says so.
func TestRejoin_RunningPrimaryIsNotTouched(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, shutDown)
	c.node1.StartAgain()
	for _, dryRun := range []bool{true, false} {
		_, err := c.rejoin(t, repmgr.RejoinOptions{DryRun: dryRun})
		requireError(t, err, repmgr.ErrRefused, "runs as a primary", c.node1.Dir)
	}
	require.False(t, pgtest.Query[bool](t, c.node1.Server, `SELECT pg_is_in_recovery()`))
	res, err := c.rejoin(t, repmgr.RejoinOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	c.requireEqualEverywhere(t)
}

// What the lease fences, a standby of nobody that has its own rows, comes back too.
func TestRejoin_DetachedStandbyRewinds(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	require.NoError(t, os.WriteFile(filepath.Join(c.node1.Dir, "standby.signal"), nil, 0o600))
	c.node1.StartAgain()
	res, err := c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	require.GreaterOrEqual(t, len(res.Salvage.Commits), 2)
	c.requireEqualEverywhere(t)
}

// Two nodes that were promoted apart from one timeline are on timelines of one number:
// pg_rewind finds nothing to rewind then, and what it leaves never follows.
func TestRejoin_PromotedApart(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	require.NoError(t, os.WriteFile(filepath.Join(c.node1.Dir, "standby.signal"), nil, 0o600))
	c.node1.StartAgain()
	require.True(t, pgtest.Query[bool](t, c.node1.Server, `SELECT pg_promote()`))
	c.node1.Exec(t, `CHECKPOINT`)
	c.node1.Stop("fast")
	res, err := c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByClone, res.Method)
	require.Contains(t, res.Reason, "promoted apart")
	require.Contains(t, c.node1.events.wait(t, repmgr.EventNodeRejoin).Details, "by reclone (the two were promoted apart")
	require.NotNil(t, res.Salvage)
	c.requireEqualEverywhere(t)
}

// A node that was promoted by hand and taken back keeps no segment of the timeline that it began: the next primary begins
// one of that number, and the node follows it.
func TestRejoin_LeavesNothingOfItsTimeline(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{Settings: map[string]string{"wal_keep_size": "64MB"}}, func(t *testing.T, c formerPrimary) {
		require.True(t, pgtest.Query[bool](t, c.node3.Server, `SELECT pg_promote()`))
		c.node3.Exec(t, `CHECKPOINT`)
		c.node3.Stop("fast")
		res, err := c.node3.Rejoin(t.Context(), repmgr.RejoinOptions{Target: c.node1.Conninfo(), DataDirectory: c.node3.Dir})
		require.NoError(t, err)
		require.Equal(t, repmgr.RejoinByRewind, res.Method, res.Reason)
		names, err := filepath.Glob(filepath.Join(c.node3.Dir, "pg_wal", "00000002*"))
		require.NoError(t, err)
		require.Empty(t, names)
		waitSame(t, c.node1, c.node3)
		c.node3.set(t, `primary_conninfo = ''`) // it misses the end of the old timeline
		pgtest.WaitFor(t, "node3 to leave", func(context.Context) error {
			if n := c.node1.QueryString(t, `SELECT count(*) FROM pg_stat_replication`); n != "1" {
				return fmt.Errorf("%s are there", n)
			}
			return nil
		})
		c.node1.Exec(t, `INSERT INTO t SELECT generate_series(2001, 2100)`)
		waitSame(t, c.node1, c.node2)
		c.node1.Kill()
	})
	waitSame(t, c.node2, c.node3)
}

// Nothing is taken back that could not be saved, unless an operator insists.
func TestRejoin_WhatCanNotBeSavedIsNotLost(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	require.NoError(t, os.WriteFile(c.node1.Dir+".salvage", nil, 0o600)) // a file where the directory shall be
	_, err := c.rejoin(t, repmgr.RejoinOptions{})
	requireError(t, err, repmgr.ErrRejoin, "save the WAL")
	require.Contains(t, repmgr.Hint(err), "salvage_directory")
	require.NoFileExists(t, filepath.Join(c.node1.Dir, "standby.signal"))
}

// A password reaches pg_rewind, and nobody who lists processes.
func TestRejoin_ShowsNoPassword(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{HBA: []string{"host all agent all scram-sha-256"}}, crashWithRows, func(s *pgtest.Server) {
		s.Exec(t, `SET password_encryption = 'scram-sha-256'; CREATE ROLE agent SUPERUSER LOGIN PASSWORD '`+agentPassword+`'`)
	})
	dir := t.TempDir()
	wrapper := filepath.Join(dir, "pg_rewind")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" > %s/args\nexec %s/pg_rewind \"$@\"\n", dir, c.node1.BinDir)
	require.NoError(t, os.WriteFile(wrapper, []byte(script), 0o700))
	res, err := c.rejoin(t, repmgr.RejoinOptions{PgRewind: wrapper, Target: c.node2.cfg.Conninfo})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	require.NoError(t, err)
	require.Contains(t, string(args), "--source-server")
	require.NotContains(t, string(args), "s3cret")
	require.NotContains(t, fmt.Sprintf("%+v", res), "s3cret")
	c.requireEqualEverywhere(t)
}

// A node that has voted in an election does not go back to a primary of an
// earlier term, also when it was down meanwhile.
func TestRejoin_KeepsItsPledge(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, shutDown)
	c.node2.Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (7, 1, 2, '{1,2,3}', false, '{}', 0)`)
	auto := filepath.Join(c.node1.Dir, "postgresql.auto.conf")
	own, err := os.ReadFile(auto)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(auto, append(own, "repmgr.ballot = '1/8/node3.1'\n"...), 0o600))
	_, err = c.rejoin(t, repmgr.RejoinOptions{Target: c.node2.Conninfo()})
	requireError(t, err, repmgr.ErrRefused, "pledged itself to term 8", "term 7")
	for text, want := range map[string]string{
		string(own) + "Repmgr.Ballot '1/8/node3.1' # as PostgreSQL reads it, too\n": "pledged itself to term 8",
		string(own) + "repmgr.ballot = '1/8/node3.1\n":                              "none of a configuration file",
		string(own) + "repmgr.ballot = '1/8'\n":                                     "want node/term/candidate",
		"":                                                                          "it is not there",
	} {
		require.NoError(t, os.WriteFile(auto, []byte(text), 0o600))
		if text == "" {
			require.NoError(t, os.Remove(auto))
		}
		_, err = c.rejoin(t, repmgr.RejoinOptions{Target: c.node2.Conninfo()})
		require.ErrorContains(t, err, want)
		if !errors.Is(err, repmgr.ErrRefused) {
			requireError(t, err, repmgr.ErrRejoin, "read the vote of", "postgresql.auto.conf")
			require.Contains(t, repmgr.Hint(err), "repmgr_nodes.json")
		}
	}
	require.NoError(t, os.WriteFile(auto, append(own, "repmgr.ballot = '1/8/node3.1'\n"...), 0o600))
	c.node2.Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (8, 1, 2, '{1,2,3}', false, '{}', 0)`)
	_, err = c.rejoin(t, repmgr.RejoinOptions{Target: c.node2.Conninfo()})
	require.NoError(t, err)
	c.requireEqualEverywhere(t)
}

// Without its address nobody knows the primary, and a foreign cluster is no target.
func TestRejoin_BadInput(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, shutDown)
	_, err := c.node1.Rejoin(t.Context(), repmgr.RejoinOptions{})
	requireError(t, err, repmgr.ErrConfig, "no node was named")
	nowhere := newNode(t, 1, c.node1.Server)
	_, err = nowhere.Rejoin(t.Context(), repmgr.RejoinOptions{Target: c.node2.Conninfo()})
	requireError(t, err, repmgr.ErrConfig, "data directory")
	other := newNode(t, 7, c.node1.Server, func(cfg *repmgr.Config) { cfg.DataDirectory = c.node1.Dir })
	_, err = other.Rejoin(t.Context(), repmgr.RejoinOptions{Target: c.node2.Conninfo()})
	requireError(t, err, repmgr.ErrNotRegistered, "node7")
	foreign := pgtest.Start(t, pgtest.Options{Fresh: true})
	far := newNode(t, 1, foreign, func(cfg *repmgr.Config) { cfg.DataDirectory = foreign.Dir })
	foreign.Stop("fast")
	_, err = far.Rejoin(t.Context(), repmgr.RejoinOptions{Target: c.node2.Conninfo()})
	requireError(t, err, repmgr.ErrSystemIdentifier, foreign.Dir)
}

// A standby that received more than the winner, and has made no restartpoint
// since the promotion before: pg_rewind of 15 and older does not know its timeline.
func TestRejoin_StandbyWithMoreThanTheWinner(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, shutDown)
	_, err := c.rejoin(t, repmgr.RejoinOptions{})
	require.NoError(t, err)
	waitSame(t, c.node2, c.node1)
	waitSame(t, c.node2, c.node3)
	c.node1.Exec(t, `ALTER SYSTEM SET primary_conninfo = ''`)
	c.node1.Exec(t, `SELECT pg_reload_conf()`)
	pgtest.WaitFor(t, "node1 to receive nothing", func(context.Context) error {
		if n := c.node1.QueryString(t, `SELECT count(*) FROM pg_stat_wal_receiver`); n != "0" {
			return errors.New("it does")
		}
		return nil
	})
	c.node2.Exec(t, `INSERT INTO t SELECT generate_series(4001, 4100)`)
	waitSame(t, c.node2, c.node3)
	c.node2.Kill()
	_, err = c.node1.Promote(t.Context(), repmgr.PromoteOptions{Force: true})
	require.NoError(t, err)
	c.node3.cfg.DataDirectory = c.node3.Dir
	node3, err := repmgr.New(c.node3.cfg)
	require.NoError(t, err)
	dry, err := node3.Rejoin(t.Context(), repmgr.RejoinOptions{Target: c.node1.Conninfo(), DryRun: true})
	require.NoError(t, err)
	res, err := node3.Rejoin(t.Context(), repmgr.RejoinOptions{Target: c.node1.Conninfo()})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method, res.Reason)
	require.Equal(t, dry.Reason, res.Reason)
	require.Len(t, res.Salvage.Commits, 1)
	waitSame(t, c.node1, c.node3)
	require.Equal(t, "0", c.node3.QueryString(t, `SELECT count(*) FROM t WHERE id BETWEEN 4001 AND 4100`))
}

// A winner that is lost before its first checkpoint, while another one is elected, replays as a standby what it wrote.
// pg_rewind of 15 and older would look for that on the timeline before, whose last segment an archive has had renamed.
func TestRejoin_LostBeforeItsFirstCheckpoint(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	server := pgtest.Start(t, pgtest.Options{Name: "node1", Settings: map[string]string{
		"archive_mode": "on", "archive_command": "true", "checkpoint_timeout": "1h",
	}})
	node1 := newNode(t, 1, server)
	_, err := node1.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	require.NoError(t, err)
	node1.Exec(t, `CREATE TABLE t AS SELECT generate_series(1, 1000) AS id`)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	waitSame(t, node1, node2)
	waitSame(t, node1, node3)
	node1.Kill()

	node2.Exec(t, `ALTER SYSTEM SET primary_conninfo = ''`)
	node2.Exec(t, `SELECT pg_promote()`)
	node2.Exec(t, `INSERT INTO t SELECT generate_series(2001, 2100)`)
	node2.Kill()
	require.NoError(t, os.WriteFile(filepath.Join(node2.Dir, "standby.signal"), nil, 0o600))
	node2.StartAgain()
	require.Equal(t, "1100", node2.QueryString(t, `SELECT count(*) FROM t`))
	node2.Stop("fast")
	control, err := pgcontrol.Read(node2.Dir)
	require.NoError(t, err)
	require.Equal(t, []wal.Timeline{1, 2}, []wal.Timeline{control.Timeline, control.MinRecoveryTimeline}, "it has replayed what no checkpoint names")

	node3.Exec(t, `ALTER SYSTEM SET recovery_target_timeline = 'current'`)
	node3.Stop("fast") // the election that node2 had won is known here: the next timeline gets another number
	history, err := os.ReadFile(filepath.Join(node2.Dir, "pg_wal", "00000002.history"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(node3.Dir, "pg_wal", "00000002.history"), history, 0o600))
	node3.StartAgain()
	_, err = node3.Promote(t.Context(), repmgr.PromoteOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, "3", node3.QueryString(t, `SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int`))

	node2.cfg.DataDirectory = node2.Dir
	c, err := repmgr.New(node2.cfg)
	require.NoError(t, err)
	res, err := c.Rejoin(t.Context(), repmgr.RejoinOptions{Target: node3.Conninfo()})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method, res.Reason)
	require.Len(t, res.Salvage.Commits, 1)
	waitSame(t, node3, node2)
	require.Equal(t, "1000", node2.QueryString(t, `SELECT count(*) FROM t`))
}

// A primary that is lost while the node is brought back to it is nothing to clone
// from: the node's data stays until there is one again, whatever the policy.
func TestRejoin_SourceIsLost(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	fake := filepath.Join(t.TempDir(), "pg_rewind")
	script := fmt.Sprintf("#!/bin/sh\nkill -9 $(head -n 1 %s/postmaster.pid)\nexit 1\n", c.node2.Dir)
	require.NoError(t, os.WriteFile(fake, []byte(script), 0o700))
	_, err := c.rejoin(t, repmgr.RejoinOptions{PgRewind: fake, Policy: repmgr.RejoinReclone})
	requireError(t, err, repmgr.ErrRejoin, "pg_rewind", "node2")
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.FileExists(t, filepath.Join(c.node1.Dir, "global", "pg_control"))
	c.node2.Kill()
	c.node2.StartAgain()
	res, err := c.rejoin(t, repmgr.RejoinOptions{Policy: repmgr.RejoinReclone})
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	c.requireEqualEverywhere(t)
}

// Where pg_rewind says that it can never do it, nobody has to ask for a clone; where a person
// could help, it is refused.
func TestRejoin_RewindFindsNoWay(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	fake := filepath.Join(t.TempDir(), "pg_rewind")
	says := func(text string) repmgr.RejoinOptions {
		require.NoError(t, os.WriteFile(fake, []byte("#!/bin/sh\necho 'pg_rewind: error: "+text+"' >&2\nexit 1\n"), 0o700))
		return repmgr.RejoinOptions{PgRewind: fake, Policy: repmgr.RejoinRewind, Target: c.node2.Conninfo()}
	}
	_, err := c.rejoin(t, says("connection to server failed"))
	requireError(t, err, repmgr.ErrRejoin, "pg_rewind", "is not possible", "connection to server failed")
	cfg := c.node1.cfg
	cfg.UseReplicationSlots = true // which its row does not say: that counts
	anew, err := repmgr.New(cfg)
	require.NoError(t, err)
	res, err := anew.Rejoin(t.Context(), says("could not find previous WAL record at 0/A2FAA70: invalid contrecord length 1 (expected 2) at 0/A2FAA70"))
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByClone, res.Method)
	require.NotEmpty(t, res.Salvage)
	require.Equal(t, "0", c.node2.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE NOT active`), "a slot that nobody uses would keep WAL")
	c.requireEqualEverywhere(t)
}

// The tablespaces of the data that is replaced go with it, and those of the new data
// may take their place. What else lies there is nobody's to delete.
func TestRejoin_RecloneWithTablespaces(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	root := t.TempDir()
	var spaces []string
	for i := range 3 {
		spaces = append(spaces, filepath.Join(root, fmt.Sprintf("space%d", i+1)))
		require.NoError(t, os.Mkdir(spaces[i], 0o700))
	}
	node1 := startPrimary(t)
	node1.cfg.DataDirectory = node1.Dir
	node1.Exec(t, fmt.Sprintf(`CREATE TABLESPACE extra LOCATION '%s'`, spaces[0]))
	node1.Exec(t, `CREATE TABLE t TABLESPACE extra AS SELECT generate_series(1, 1000) AS id`)
	mapped := func(from, to int) func(*repmgr.Config) {
		return func(c *repmgr.Config) { c.TablespaceMapping = map[string]string{spaces[from]: spaces[to]} }
	}
	node2 := addStandby(t, node1, 2, mapped(0, 1))
	waitSame(t, node1, node2)
	leaveAlone(t, formerPrimary{node1, node2, node2})
	node1.Exec(t, `INSERT INTO t VALUES (2001)`)
	node1.Kill()
	_, err := node2.Promote(t.Context(), repmgr.PromoteOptions{})
	require.NoError(t, err)
	fake := filepath.Join(root, "pg_rewind")
	require.NoError(t, os.WriteFile(fake, []byte("#!/bin/sh\nexit 1\n"), 0o700))
	reclone := func() error {
		t.Helper()
		cfg := node1.cfg
		mapped(1, 0)(&cfg)
		c, err := repmgr.New(cfg)
		require.NoError(t, err)
		_, err = c.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: repmgr.RejoinReclone, Target: node2.Conninfo(), PgRewind: fake})
		return err
	}
	note := filepath.Join(spaces[0], "note.txt")
	require.NoError(t, os.WriteFile(note, nil, 0o600))
	requireError(t, reclone(), repmgr.ErrDirectory, spaces[0], "is not empty")
	require.FileExists(t, note)
	require.FileExists(t, filepath.Join(node1.Dir, "global", "pg_control"))
	require.NoError(t, os.Remove(note))
	require.NoError(t, reclone())
	node2.Exec(t, `INSERT INTO t VALUES (9999)`)
	waitSame(t, node2, node1)
	require.Equal(t, "1001", node1.QueryString(t, `SELECT count(*) FROM t`))
	require.Equal(t, spaces[0], node1.QueryString(t, `SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'`))
}

// onMessage runs f when a message is logged.
type onMessage struct {
	slog.Handler
	message string
	f       func()
}

func (h onMessage) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.f()
	}
	return h.Handler.Handle(ctx, r)
}

// A standby that was stopped for a rewind runs again where the primary is lost before
// its data was changed: the election needs its vote.
func TestRejoin_StartsAgainWhatItStopped(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	primary := startPrimary(t)
	standby := addStandby(t, primary, 2)
	standby.cfg.DataDirectory = standby.Dir
	standby.stray(t, func() { standby.Stop("fast") })
	c := standby.onMessage(t, "rejoin: detach", primary.Kill)
	res, err := c.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: repmgr.RejoinRewind, Target: primary.Conninfo()})
	require.Error(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	require.Equal(t, "checkpoint", res.Steps[len(res.Steps)-1].Name)
	require.Equal(t, "t", standby.QueryString(t, `SELECT pg_is_in_recovery() AND current_setting('primary_conninfo') = ''`))
}

// The same for a former primary that its daemon has found down: without its vote there is no
// majority once the new primary is lost while it is brought back.
func TestRejoin_GivesAVoteMeanwhile(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	nodes := startNodes(t, 3, repmgr.SynchronousOff)
	elected := make(chan *node, 1)
	var once sync.Once
	nodes[0].cfg.Logger = slog.New(onMessage{nodes[0].cfg.Logger.Handler(), "rejoin: detach", func() { once.Do(func() { (<-elected).Kill() }) }})
	startMonitors(t, nodes)
	waitReady(t, nodes, 3, repmgr.SynchronousOff)
	_ = breakReplication(t, nodes[0])
	nodes[0].Exec(t, `CREATE TABLE not_sent AS SELECT generate_series(1, 100)`)
	nodes[0].Kill()
	first := waitPrimary(t, nodes[1:]...)
	elected <- first
	nodes[0].events.waitRejoin(t)
	second := waitPrimary(t, nodes[1:]...)
	require.NotEqual(t, first.cfg.NodeID, second.cfg.NodeID)
	waitStreams(t, second, nodes[0])
}

// onMessage is the node's Cluster, which runs do when it logs that message.
func (n *node) onMessage(t *testing.T, message string, do func()) *repmgr.Cluster {
	t.Helper()
	cfg := n.cfg
	cfg.Logger = slog.New(onMessage{cfg.Logger.Handler(), message, do})
	c, err := repmgr.New(cfg)
	require.NoError(t, err)
	return c
}

// Where the primary is lost between the crash recovery of a rejoin and pg_rewind, the
// node has WAL of its own: it follows nobody until a rejoin has ended.
func TestRejoin_OwnWAL(t *testing.T) {
	t.Parallel()
	c := failOver(t, pgtest.Options{}, crashWithRows)
	o := repmgr.RejoinOptions{Policy: repmgr.RejoinRewind, Target: c.node3.Conninfo()}
	res, err := c.node1.onMessage(t, "rejoin: recover", c.node2.Kill).Rejoin(t.Context(), o)
	require.Error(t, err)
	require.Equal(t, "rewind", res.Steps[len(res.Steps)-1].Name)
	c.node2.StartAgain()
	c.node1.StartAgain() // as somebody does
	const noted = `SELECT pg_is_in_recovery() AND current_setting('repmgr.own_wal', true) IS NOT NULL`
	require.Equal(t, "t", c.node1.QueryString(t, noted))
	_, err = c.node1.Follow(t.Context(), repmgr.FollowOptions{Target: c.node2.Conninfo()})
	requireError(t, err, repmgr.ErrTimelineDiverged, "WAL of its own")
	require.Contains(t, repmgr.Hint(err), "--force-rewind")
	res, err = c.node1.Rejoin(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByRewind, res.Method)
	require.Equal(t, "f", c.node1.QueryString(t, noted))
	waitSame(t, c.node2, c.node1)
}

// WAL of its own behind a place that the new primary's line has passed looks like the
// primary's: neither following nor pg_rewind helps.
func TestRejoin_OwnWALPassed(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	primary := startPrimary(t)
	standby := addStandby(t, primary, 2)
	standby.cfg.DataDirectory = standby.Dir
	standby.Stop("fast")
	auto := filepath.Join(standby.Dir, "postgresql.auto.conf")
	text, err := os.ReadFile(auto)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(auto, append(text, `repmgr.own_wal = '{"timeline": 1, "lsn": "0/1000000"}'`+"\n"...), 0o600))
	primary.Exec(t, `CREATE TABLE later AS SELECT 1 AS i`)
	c, err := repmgr.New(standby.cfg)
	require.NoError(t, err)
	o := repmgr.RejoinOptions{Policy: repmgr.RejoinIfClean, Target: primary.Conninfo()}
	_, err = c.Rejoin(t.Context(), o)
	require.ErrorIs(t, err, repmgr.ErrTimelineDiverged)
	o.Policy = repmgr.RejoinRewind
	res, err := c.Rejoin(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, repmgr.RejoinByClone, res.Method)
	waitSame(t, primary, standby)
	require.Equal(t, "t", standby.QueryString(t, `SELECT current_setting('repmgr.own_wal', true) IS NULL`))
}

// A primary that crashed behind a segment that it had left early, as at the end of a base backup, needs nothing of that segment from
// the new one, which has removed it.
func TestRejoin_BehindASegmentLeftEarly(t *testing.T) {
	t.Parallel()
	needRejoin(t)
	primary := startPrimary(t)
	standby := addStandby(t, primary, 2)
	primary.cfg.DataDirectory = primary.Dir
	primary.Exec(t, `CHECKPOINT`)
	left := primary.QueryString(t, `SELECT right(pg_walfile_name(pg_current_wal_lsn()), 16)`)
	primary.Exec(t, `SELECT pg_switch_wal()`)
	primary.Exec(t, `CREATE TABLE later AS SELECT 1 AS i`)
	waitSame(t, primary, standby)
	primary.Kill()
	_, err := standby.Promote(t.Context(), repmgr.PromoteOptions{})
	require.NoError(t, err)
	pgtest.WaitFor(t, "the segment to be removed", func(context.Context) error {
		standby.Exec(t, `CHECKPOINT`)
		if n := standby.QueryString(t, `SELECT count(*) FROM pg_ls_waldir() WHERE right(name, 16) = $1`, left); n != "0" {
			return errors.New("it is there")
		}
		return nil
	})
	c, err := repmgr.New(primary.cfg)
	require.NoError(t, err)
	_, err = c.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: repmgr.RejoinRewind, Target: standby.Conninfo()})
	require.NoError(t, err)
	waitSame(t, standby, primary)
}
