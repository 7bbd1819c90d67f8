package postgres

import "context"

// ReplaySettings are the settings that a standby must have as large as its primary; it stops replaying where
// one of them is smaller.
var ReplaySettings = []string{"max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction"}

// Capacity is the values of [ReplaySettings]: those in force, and those after a restart. What a file says counts from
// the next start on, whether it was read already or not; what no file says any more is the default again; the
// command line is stronger than a file. The login must be allowed to read pg_file_settings.
func (n *Server) Capacity(ctx context.Context) (running, next map[string]int, err error) {
	err = n.Conn.QueryRow(ctx, `SELECT json_object_agg(s.name, s.setting::int), json_object_agg(s.name, CASE WHEN s.source = 'command line' THEN s.setting
			ELSE coalesce(CASE WHEN f.setting ~ '^[0-9]+$' THEN f.setting END, CASE WHEN s.source = 'configuration file' OR s.pending_restart THEN s.boot_val ELSE s.setting END) END::int)
		FROM pg_settings s LEFT JOIN LATERAL (SELECT setting FROM pg_file_settings WHERE name = s.name ORDER BY seqno DESC LIMIT 1) f ON true
		WHERE s.name = ANY ($1)`, ReplaySettings).Scan(&running, &next)
	return running, next, err
}

// ArchiveReady is how many WAL segments wait for the archiver; -1: this login may not read that.
func (n *Server) ArchiveReady(ctx context.Context) int {
	ready := -1
	_ = n.Conn.QueryRow(ctx, `SELECT count(*)::int FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'`).Scan(&ready)
	return ready
}

// ReadOnly reports whether a configuration file sets default_transaction_read_only. Our own sessions pin that
// setting, so the files are read; false also where this login may not do that.
func (n *Server) ReadOnly(ctx context.Context) (on bool) {
	_ = n.Conn.QueryRow(ctx, `SELECT coalesce((SELECT setting::bool FROM pg_file_settings
		WHERE name = 'default_transaction_read_only' AND error IS NULL ORDER BY seqno DESC LIMIT 1), false)`).Scan(&on)
	return on
}

// Checkpoint writes a checkpoint, however long that takes.
func (n *Server) Checkpoint(ctx context.Context) error {
	if _, err := n.Conn.Exec(Unlimited(ctx), `CHECKPOINT`); err != nil {
		return n.QueryError("write a checkpoint", err)
	}
	return nil
}
