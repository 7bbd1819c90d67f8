package switchover

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// Facts are what is known before a switchover begins.
type Facts struct {
	Rule            election.Rule
	Peers           []election.Peer
	Primary, Target registry.Record
	Names           map[int32]string // of all registered nodes

	InPlace  bool      // the primary is only restarted; the target is there in case that it does not start
	Servers  [2]Server // of the primary and of the target
	Shutdown Shutdown
}

// Server is what a server says of itself.
type Server struct {
	Err      error          // why it could not be asked; nil: it was
	Capacity map[string]int // the settings that a standby must have as large as its primary; of the primary: as they are after its restart
	Rewinds  bool           // its data directory could be rewound: checksums or wal_log_hints are on
	Received int64          // of the target: bytes of the primary's WAL that it has not received
	Replay   int64          // of the target: bytes that it has received and not replayed
	Restart  []string       // settings that wait for a restart
	ReadOnly bool           // of the target: default_transaction_read_only is on
}

// Shutdown is what the shutdown of the primary ends or waits for.
type Shutdown struct {
	Transaction time.Duration // the age of the oldest open transaction of a client
	Prepared    int           // transactions that are prepared and not committed
	Archive     int           // WAL segments that wait for the archiver; -1: this login may not read it
	Failing     bool          // the newest attempt to archive failed
	Backups     int           // base backups that run
}

const serverSQL = `SELECT
	(SELECT json_object_agg(name, setting::int) FROM pg_settings WHERE name = ANY ($1)),
	current_setting('data_checksums') = 'on' OR current_setting('wal_log_hints') = 'on',
	ARRAY(SELECT name FROM pg_settings WHERE pending_restart ORDER BY name)`

const shutdownSQL = `SELECT
	coalesce((SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()), 0)::float8,
	(SELECT count(*)::int FROM pg_prepared_xacts),
	coalesce((SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver), false),
	(SELECT count(*)::int FROM pg_stat_progress_basebackup)`

// Look gathers the facts. primary is a connection to the primary. It changes nothing. An error
// means that the primary does not answer; what else could not be asked is in the facts.
func Look(ctx context.Context, primary *registry.Server, w *voters.Watch, target int32) (Facts, error) {
	peers := w.Peers()
	f := Facts{Rule: voters.NewestRule(peers), Peers: peers, Names: map[int32]string{}}
	for _, r := range w.Records() {
		f.Names[int32(r.ID)] = r.Name
	}
	f.Primary, f.Target = w.Record(f.Rule.Primary), w.Record(target)
	var err error
	if f.Servers[0], err = lookServer(ctx, primary); err != nil {
		return f, err
	}
	if _, next, err := primary.Capacity(ctx); err == nil { // not every login may read that
		f.Servers[0].Capacity = next
	}
	if f.Shutdown, err = lookShutdown(ctx, primary); err != nil {
		return f, err
	}
	if v := w.Voter(target); v != nil {
		f.Servers[1].Err = v.Run(ctx, func(n *registry.Server) (err error) {
			if f.Servers[1], err = lookServer(ctx, n); err != nil {
				return err
			}
			return n.Conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::int8`).Scan(&f.Servers[1].Replay)
		})
	}
	f.Servers[1].Received, err = lacking(ctx, primary, voters.PeerOf(peers, target))
	return f, err
}

// lacking is how many bytes of the primary's WAL a standby has not received.
func lacking(ctx context.Context, primary *registry.Server, standby election.Peer) (bytes int64, err error) {
	if err := primary.Conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), $1::text::pg_lsn)::int8`, standby.Position.LSN.String()).Scan(&bytes); err != nil {
		return 0, primary.QueryError("compare positions", err)
	}
	return max(0, bytes), nil
}

func lookServer(ctx context.Context, n *registry.Server) (s Server, err error) {
	if err = n.Conn.QueryRow(ctx, serverSQL, postgres.ReplaySettings).Scan(&s.Capacity, &s.Rewinds, &s.Restart); err != nil {
		return s, n.QueryError("look at the settings", err)
	}
	s.ReadOnly = n.ReadOnly(ctx)
	return s, nil
}

func lookShutdown(ctx context.Context, n *registry.Server) (s Shutdown, err error) {
	var age float64
	if err := n.Conn.QueryRow(ctx, shutdownSQL).Scan(&age, &s.Prepared, &s.Failing, &s.Backups); err != nil {
		return s, n.QueryError("look at what a shutdown waits for", err)
	}
	s.Transaction, s.Archive = time.Duration(age*float64(time.Second)), n.ArchiveReady(ctx)
	return s, nil
}
