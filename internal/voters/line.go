package voters

import (
	"context"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// readLine fills in the timeline of a node and its history. It reports whether they are
// certain.
func readLine(ctx context.Context, n *registry.Server, v *election.Peer, e postgres.LineEvidence) (sure bool) {
	at := e.Surely()
	if r := v.Rule; r.Line.Timeline > at.Timeline && len(r.Line.Past) > 0 { // its row was replayed
		at = wal.Position{Timeline: r.Line.Timeline, LSN: r.Line.Past[len(r.Line.Past)-1].SwitchLSN}
	}
	v.Position.Timeline, sure = n.Timeline(ctx, e, at, v.Replayed)
	if l := v.Rule.Line; l.Timeline == v.Position.Timeline && l.Fingerprint != 0 { // the row of the rule was replayed on this timeline
		v.Past, v.Mark = l.Past, l.Fingerprint // the file of the history may be that of another primary: see [rejoin.MendHistories]
	} else {
		v.Past = n.Past(ctx, v.Position.Timeline)
		v.Mark = n.Mark(ctx, v.Position.Timeline, v.Past)
	}
	return sure
}

// replayHalt is the reason why the replay of a standby can not reach its end, or empty.
// Resuming a replay that stops at a recovery target would promote the server; resuming one that
// waits for larger parameters would stop the server.
func replayHalt(ctx context.Context, n *registry.Server, target, paused bool) election.Unfit {
	switch {
	case target:
		return election.UnfitTarget
	case !paused:
		return ""
	}
	var text []byte
	var have [5]int
	err := n.Conn.QueryRow(ctx, `SELECT pg_read_binary_file('global/pg_control'), current_setting('max_connections')::int, current_setting('max_worker_processes')::int,
		current_setting('max_wal_senders')::int, current_setting('max_prepared_transactions')::int, current_setting('max_locks_per_transaction')::int`).
		Scan(&text, &have[0], &have[1], &have[2], &have[3], &have[4])
	if err != nil {
		return election.UnfitPaused
	}
	control, err := pgcontrol.Parse(text)
	if err != nil {
		return election.UnfitPaused
	}
	for i, needs := range []int{control.MaxConnections, control.MaxWorkerProcesses, control.MaxWALSenders, control.MaxPreparedXacts, control.MaxLocksPerTransaction} {
		if have[i] < needs {
			return election.UnfitParameters
		}
	}
	return ""
}
