package pgtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// NewStandby makes a standby of upstream by copying its files inside a backup,
// starts it, and waits until it streams. Upstream may be a standby itself.
// The standby's data is upstream's; of o only Name, Dir, Port, Settings and
// Slot matter.
func NewStandby(t testing.TB, upstream *Server, o Options) *Server {
	t.Helper()
	o.BinDir, o.Password = upstream.BinDir, upstream.password
	s, _ := newServer(t, o)
	if err := upstream.backup(s.Dir); err != nil {
		t.Fatalf("pgtest: copy %s to %s: %v", upstream.Name, s.Name, err)
	}
	s.configure(o, nil)
	if o.Slot != "" {
		upstream.Exec(t, "SELECT pg_create_physical_replication_slot($1, true)", o.Slot)
	}
	// Also without a slot: upstream may be a standby that has one.
	auto := fmt.Sprintf("primary_conninfo = %s\nprimary_slot_name = %s\n",
		quoteSetting(upstream.Conninfo("application_name="+quoteConninfo(s.Name))), quoteSetting(o.Slot))
	if err := os.WriteFile(filepath.Join(s.Dir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	if err := appendFile(filepath.Join(s.Dir, "postgresql.auto.conf"), auto); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s.StartAgain()
	WaitFor(t, s.Name+" to stream from "+upstream.Name, func(ctx context.Context) error {
		return upstream.StreamsTo(ctx, s.Name)
	})
	return s
}

// StreamsTo returns nil when a standby with this application_name streams from
// the server. It is meant for WaitFor.
func (s *Server) StreamsTo(ctx context.Context, name string) error {
	return s.with(ctx, func(c *pgx.Conn) error {
		rows, _ := c.Query(ctx, "SELECT application_name || ': ' || state FROM pg_catalog.pg_stat_replication")
		states, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, state := range states {
			if state == name+": streaming" {
				return nil
			}
		}
		return fmt.Errorf("standbys of %s: %q", s.Name, states)
	})
}

// backup copies the running server's data directory to dir so that it can be
// recovered from.
func (s *Server) backup(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	return s.with(ctx, func(c *pgx.Conn) error {
		start, stop := "SELECT pg_catalog.pg_backup_start('pgtest', true)", "SELECT labelfile, spcmapfile FROM pg_catalog.pg_backup_stop(false)"
		if s.Major < 15 {
			start, stop = "SELECT pg_catalog.pg_start_backup('pgtest', true, false)", "SELECT labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false, false)"
		}
		if _, err := c.Exec(ctx, start); err != nil {
			return err
		}
		// The standby gets the rest of the WAL by streaming: what there is now is enough.
		if err := copyTree(s.Dir, dir, notForStandby); err != nil {
			return err
		}
		var label, tablespaces string
		if err := c.QueryRow(ctx, stop).Scan(&label, &tablespaces); err != nil {
			return err
		}
		if tablespaces != "" {
			return fmt.Errorf("%s has tablespaces, which this copy would share", s.Name)
		}
		return os.WriteFile(filepath.Join(dir, "backup_label"), []byte(label), 0o600)
	})
}

// notForStandby tells the files that belong to the running server alone.
func notForStandby(rel string) bool {
	switch rel {
	case "postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal":
		return true
	}
	switch filepath.Dir(rel) {
	case "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans":
		return true
	}
	return strings.HasPrefix(filepath.Base(rel), "pgsql_tmp") || strings.HasSuffix(rel, ".tmp")
}
