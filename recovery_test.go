package repmgr_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// A standby that was re-pointed but does not stream is not called a success.
func TestFollow_SaysWhenItDoesNotStream(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2 := addStandby(t, node1, 2)
	node3 := addStandby(t, node1, 3, func(c *repmgr.Config) { c.StandbyFollowTimeout = time.Second })
	hba := filepath.Join(node2.Dir, "pg_hba.conf")
	text, err := os.ReadFile(hba)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(hba, append([]byte("host replication all all reject\n"), text...), 0o600))
	node2.Exec(t, `SELECT pg_reload_conf()`)

	res, err := node3.Follow(t.Context(), repmgr.FollowOptions{UpstreamID: 2})
	requireError(t, err, repmgr.ErrNotAttached, "node3", "node2", "standby_follow_timeout (1s)")
	require.Contains(t, repmgr.Hint(err), "pg_hba.conf")
	require.False(t, res.Streaming)
	e := node3.events.wait(t, repmgr.EventStandbyFollow)
	require.False(t, e.Success)
	require.Equal(t, "! node2", node1.view(t, 3).Upstream)

	_, err = node3.Follow(t.Context(), repmgr.FollowOptions{})
	require.NoError(t, err)
	require.Equal(t, "node1", node1.view(t, 3).Upstream)
}

// What a standby receives from a former primary until it is re-pointed may be what
// the new one never had: then it does not wait for a stream that never comes.
func TestFollow_DivergesMeanwhile(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	point := func(to string) {
		node3.Exec(t, `ALTER SYSTEM SET primary_conninfo = '`+to+`'`)
		node3.Exec(t, `SELECT pg_reload_conf()`)
	}
	point("")
	waitValue(t, node3, "0", `SELECT count(*)::text FROM pg_stat_wal_receiver`)
	node1.Kill()
	_, err := node2.Promote(ctx, repmgr.PromoteOptions{})
	require.NoError(t, err)
	node1.StartAgain()
	node1.Exec(t, `CREATE TABLE apart AS SELECT generate_series(1, 1000) AS n`)
	end := node1.QueryString(t, `SELECT pg_current_wal_insert_lsn()::text`)

	holder, err := pgx.Connect(ctx, node3.Conninfo())
	require.NoError(t, err)
	defer func() { _ = holder.Close(context.WithoutCancel(ctx)) }()
	ended := make(chan error, 1)
	require.NoError(t, ballot.Locked(ctx, holder, func(ballot.Ballot) error {
		go func() {
			_, err := node3.Follow(ctx, repmgr.FollowOptions{Target: node2.Conninfo()})
			ended <- err
		}()
		waitValue(t, node3, "1", `SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) // it has compared the two
		point(fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", node1.Port))
		waitValue(t, node3, "true", `SELECT (pg_last_wal_replay_lsn() >= '`+end+`')::text`)
		return nil
	}))
	requireError(t, <-ended, repmgr.ErrTimelineDiverged, "node3", "node2")
}

// A standby's slot goes with it, down a cascade and back.
func TestFollow_TakesItsSlotAlong(t *testing.T) {
	t.Parallel()
	slots := func(c *repmgr.Config) { c.UseReplicationSlots = true }
	node1 := startPrimary(t, slots)
	node2, node3 := addStandby(t, node1, 2, slots), addStandby(t, node1, 3, slots)
	const has = `SELECT coalesce(string_agg(slot_name || ':' || active, ' ' ORDER BY slot_name), '') FROM pg_replication_slots`
	require.Equal(t, "repmgr_slot_2:true repmgr_slot_3:true", node1.QueryString(t, has))
	up := node3.QueryString(t, `SELECT pg_postmaster_start_time()`)

	res, err := node3.Follow(t.Context(), repmgr.FollowOptions{Target: node2.Conninfo()})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(2), res.Upstream.ID)
	require.Equal(t, "repmgr_slot_2:true", node1.QueryString(t, has))
	require.Equal(t, "repmgr_slot_3:true", node2.QueryString(t, has))
	_, err = node3.Follow(t.Context(), repmgr.FollowOptions{})
	require.NoError(t, err)
	require.Equal(t, "repmgr_slot_2:true repmgr_slot_3:true", node1.QueryString(t, has))
	require.Empty(t, node2.QueryString(t, has))
	require.Equal(t, up, node3.QueryString(t, `SELECT pg_postmaster_start_time()`), "no restart")
}

// Two standbys that follow each other would both receive nothing.
func TestFollow_RefusesACircle(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	_, err := node3.Follow(t.Context(), repmgr.FollowOptions{UpstreamID: 2})
	require.NoError(t, err)
	waitSame(t, node1, node2)
	_, err = node2.Follow(t.Context(), repmgr.FollowOptions{UpstreamID: 3})
	requireError(t, err, repmgr.ErrRefused, "circle", "node2")
	_, err = node2.RegisterStandby(t.Context(), repmgr.RegisterOptions{Force: true, UpstreamID: 3})
	requireError(t, err, repmgr.ErrRefused, "circle")
	require.Equal(t, "node1", node1.view(t, 2).Upstream)
}

// A standby that has less than another one would take the difference with it.
func TestPromote_RefusesWhatIsBehind(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	waitSame(t, node1, node2) // it knows of node3
	node2.Stop("fast")
	node1.Exec(t, `CREATE TABLE more AS SELECT generate_series(1, 1000)`)
	waitSame(t, node1, node3)
	node1.Kill()
	node2.StartAgain()
	for _, dryRun := range []bool{true, false} {
		_, err := node2.Promote(t.Context(), repmgr.PromoteOptions{DryRun: dryRun})
		requireError(t, err, repmgr.ErrRefused, "node3", "node2", "bytes less")
	}
	_, err := node2.Promote(t.Context(), repmgr.PromoteOptions{DryRun: true, Force: true})
	require.NoError(t, err)
	_, err = node3.Promote(t.Context(), repmgr.PromoteOptions{})
	require.NoError(t, err)
}

// A standby that receives nothing any more is on the timeline that it received
// last, also when that is newer than its last restartpoint.
func TestFollow_AfterTwoPromotions(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3, node4 := addStandby(t, node1, 2), addStandby(t, node1, 3), addStandby(t, node1, 4)
	for _, n := range []*node{node2, node3, node4} {
		waitSame(t, node1, n)
	}
	node1.Stop("fast")
	res, err := node2.Promote(t.Context(), repmgr.PromoteOptions{SiblingsFollow: true})
	require.NoError(t, err)
	require.Len(t, res.Following, 2)
	node2.Exec(t, `CREATE TABLE second AS SELECT 2`)
	waitSame(t, node2, node3)
	waitSame(t, node2, node4)
	node2.Stop("fast")
	promoted, err := node3.Promote(t.Context(), repmgr.PromoteOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 3, promoted.Timeline)
	_, err = node4.Follow(t.Context(), repmgr.FollowOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 3, node3.view(t, 4).Timeline)
}

// A server that stops answering in the middle holds nobody.
func TestStatement_HasADeadline(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	mute := newNode(t, 1, node1.Server, func(c *repmgr.Config) {
		c.Conninfo = repmgr.FormatConninfo(map[string]string{"host": "127.0.0.1", "port": strconv.Itoa(muteAfterLogin(t, node1.Port)), "user": "postgres", "sslmode": "disable"})
	})
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(2*time.Minute))
	defer cancel()
	_, err := mute.Nodes(ctx)
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.ErrorContains(t, err, `of node "node1" (ID: 1): no answer in time`)
	require.NoError(t, ctx.Err())
}

// muteAfterLogin forwards to a server until it has answered the statement by which
// a session of ours begins, and swallows all that it says from then on.
func muteAfterLogin(t *testing.T, to int) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to))
			if err != nil {
				_ = client.Close()
				continue
			}
			t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
			wg.Go(func() { _, _ = io.Copy(server, client) })
			wg.Go(func() {
				buf := make([]byte, 64<<10)
				for ready := 0; ; {
					n, err := server.Read(buf)
					if err != nil {
						return
					}
					if ready < 2 {
						_, _ = client.Write(buf[:n])
					}
					ready += bytes.Count(buf[:n], []byte("Z\x00\x00\x00\x05I"))
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func TestDryRun_ChangesNothing(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	node2, node3 := addStandby(t, node1, 2), addStandby(t, node1, 3)
	state := func() string {
		text, err := os.ReadFile(filepath.Join(node3.Dir, "postgresql.auto.conf"))
		require.NoError(t, err)
		return string(text) + node1.QueryString(t, `SELECT string_agg(n::text, ' ') || (SELECT count(*) FROM repmgr.events) FROM repmgr.nodes n`)
	}
	before := state()
	ctx := t.Context()
	_, err := node3.Follow(ctx, repmgr.FollowOptions{UpstreamID: 2, DryRun: true})
	require.NoError(t, err)
	_, err = node1.RegisterPrimary(ctx, repmgr.RegisterOptions{Force: true, DryRun: true})
	require.NoError(t, err)
	_, err = node2.RegisterStandby(ctx, repmgr.RegisterOptions{Force: true, DryRun: true})
	require.NoError(t, err)
	_, err = node1.UnregisterStandby(ctx, repmgr.UnregisterOptions{NodeID: 3, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, before, state())
	waitSame(t, node1, node2)
	node1.Kill()
	res, err := node2.Promote(ctx, repmgr.PromoteOptions{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(1), res.FormerPrimary.ID)
	require.True(t, pgtest.Query[bool](t, node2.Server, `SELECT pg_is_in_recovery()`))
}

// A promotion ends in time and with the slots and rows that it needs, also
// while replay is paused.
func TestPromote_WithSiblingsAndPausedReplay(t *testing.T) {
	t.Parallel()
	slots := func(c *repmgr.Config) { c.UseReplicationSlots = true }
	node1 := startPrimary(t, slots)
	node2, node3 := addStandby(t, node1, 2, slots), addStandby(t, node1, 3, slots)
	waitSame(t, node1, node2)
	waitSame(t, node1, node3)
	node2.Exec(t, `SELECT pg_wal_replay_pause()`)
	node1.Kill()
	res, err := node2.Promote(t.Context(), repmgr.PromoteOptions{SiblingsFollow: true})
	require.NoError(t, err)
	require.Equal(t, repmgr.NodeID(3), res.Following[0].ID)
	require.Equal(t, "repmgr_slot_3:true", node2.QueryString(t, `SELECT slot_name || ':' || active FROM pg_replication_slots`))
	require.Equal(t, "node2", node2.view(t, 3).Upstream)
	e := node2.events.wait(t, repmgr.EventStandbyPromote)
	require.True(t, e.Success)
	require.Equal(t, repmgr.NodeID(1), e.PeerID)
}

// synchronous replication without a standby must not hold up our bookkeeping.
func TestRegister_DoesNotWaitForSynchronousStandbys(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"synchronous_standby_names": "*"}})
	n := newNode(t, 1, server)
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(20*time.Second))
	defer cancel()
	_, err := n.RegisterPrimary(ctx, repmgr.RegisterOptions{})
	require.NoError(t, err)
	_, err = n.RegisterPrimary(ctx, repmgr.RegisterOptions{Force: true})
	require.NoError(t, err)
}

func TestEventsAndCleanup(t *testing.T) {
	t.Parallel()
	node1 := startPrimary(t)
	ctx := t.Context()
	node1.Exec(t, `INSERT INTO repmgr.monitoring_history SELECT 1, 2 + n % 2, now() - make_interval(days => n), now(), '0/1', '0/1', 0, 0 FROM generate_series(1, 10) n`)
	res, err := node1.Cleanup(ctx, repmgr.CleanupOptions{KeepDays: 5, DryRun: true})
	require.NoError(t, err)
	require.EqualValues(t, 6, res.Deleted)
	_, err = node1.Cleanup(ctx, repmgr.CleanupOptions{KeepDays: 5, NodeID: 3})
	requireError(t, err, repmgr.ErrNotRegistered, "3")
	res, err = node1.Cleanup(ctx, repmgr.CleanupOptions{KeepDays: 5})
	require.NoError(t, err)
	require.EqualValues(t, 6, res.Deleted)
	res, err = node1.Cleanup(ctx, repmgr.CleanupOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 4, res.Deleted)
	_, err = node1.Cleanup(ctx, repmgr.CleanupOptions{KeepDays: -1})
	require.ErrorIs(t, err, repmgr.ErrConfig)

	events, err := node1.Events(ctx, repmgr.EventFilter{})
	require.NoError(t, err)
	var types []string
	for _, e := range events {
		types = append(types, string(e.Type))
	}
	require.Equal(t, "cluster_cleanup cluster_cleanup primary_register cluster_created", strings.Join(types, " "))
	events, err = node1.Events(ctx, repmgr.EventFilter{Node: "node1", Type: repmgr.EventClusterCleanup, Limit: 1})
	require.NoError(t, err)
	require.Len(t, events, 1)
	require.Contains(t, events[0].Details, "4 rows")
	_, err = node1.Events(ctx, repmgr.EventFilter{NodeID: 9})
	requireError(t, err, repmgr.ErrNotRegistered, "9")
}
