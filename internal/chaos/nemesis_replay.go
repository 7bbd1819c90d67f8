package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// replays: what keeps a standby from the end of its WAL, or brings it other WAL
// than that of its stream; and standbys below standbys.
func replays() []Nemesis {
	return []Nemesis{
		{Name: "slow restore_command, kill server", Expect: Failover, Needs: needsFailover, Do: func(ctx context.Context, s *scene) error {
			pause := []string{"0.06", "0.3", "1", "5"}[s.rng.IntN(4)]
			s.target = "restore_command of " + pause + " s, "
			return errors.Join(s.configureAll(ctx, s.c.standbys(s.primary()), "restore_command = 'sleep "+pause+"; false'"), wait.Pause(ctx, time.Duration(s.rng.IntN(4000))*time.Millisecond), s.killServer(ctx))
		}},
		{Name: "archive of the cut-off primary", Expect: Failover, Needs: needsFailover | needsNetwork, Hold: span(6*time.Second, 9*time.Second), Do: func(ctx context.Context, s *scene) error {
			return s.archiveOn(ctx)
		}},
		{Name: "long query on standbys, kill server", Expect: Failover, Needs: needsFailover, Do: func(ctx context.Context, s *scene) error {
			return errors.Join(s.longQuery(ctx), s.killServer(ctx))
		}},
		{Name: "delayed standby, kill server", Expect: Failover, Needs: needsFailover | needsTwo, Do: func(ctx context.Context, s *scene) error {
			n := s.standby()
			s.target = "delayed: " + n.name() + ", "
			s.cleanup = append(s.cleanup, func() { _ = n.configure() })
			err := s.configure(ctx, n, "recovery_min_apply_delay = '10min'")
			return errors.Join(err, wait.Pause(ctx, 2*time.Second), s.killServer(ctx))
		}},
		{Name: "standby below a standby, kill server", Expect: Failover, Needs: needsFailover | needsTwo, Do: func(ctx context.Context, s *scene) error {
			_, err := s.cascade(ctx)
			return errors.Join(err, s.killServer(ctx))
		}},
		{Name: "standby below a standby, kill that one", Expect: None, Needs: needsFailover | needsTwo, Hold: span(moment, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			upstream, err := s.cascade(ctx)
			s.cleanup = append(s.cleanup, func() { _ = upstream.launchServer(ctx) })
			s.now()
			return errors.Join(err, killAll(ctx, "the server", s.hit(upstream).serverProcesses))
		}},
	}
}

// killServer is the end of what was prepared.
func (s *scene) killServer(ctx context.Context) error {
	s.now()
	return killAll(ctx, "the server", s.hit(s.primary()).serverProcesses)
}

// configure gives a node's server settings, and waits until it has read them.
func (s *scene) configure(ctx context.Context, n *node, settings ...string) error {
	began := time.Now()
	if err := n.configure(settings...); err != nil {
		return err
	}
	return waitFor(ctx, 10*time.Second, n.name()+" to read its settings", func(ctx context.Context) error {
		return n.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
			var at time.Time
			err := c.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&at)
			if err == nil && at.Before(began) {
				err = fmt.Errorf("it has read them at %s", at)
			}
			return err
		})
	})
}

// configureAll gives them to several, until all is well again.
func (s *scene) configureAll(ctx context.Context, nodes []*node, settings ...string) error {
	s.after = append(s.after, func(context.Context) (err error) {
		for _, n := range nodes {
			err = errors.Join(err, n.configure())
		}
		return err
	})
	return s.c.each(nodes, func(n *node) error { return s.configure(ctx, n, settings...) })
}

// archiveOn gives all nodes one archive, that no cut reaches, and cuts the primary
// off: what it writes there goes on to be archived, a segment every second.
func (s *scene) archiveOn(ctx context.Context) error {
	dir := filepath.Join(s.c.o.Dir, "archive")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), s.primary().own(dir)); err != nil {
		return err
	}
	s.after = append(s.after, func(context.Context) error { return os.RemoveAll(dir) })
	err := s.configureAll(ctx, s.c.dataNodes(), fmt.Sprintf("archive_command = 'cp %%p %[1]s/.%%f && mv %[1]s/.%%f %[1]s/%%f'", dir), fmt.Sprintf("restore_command = 'cp %s/%%f %%p'", dir))
	if err != nil {
		return err
	}
	s.now()
	n := s.hit(s.primary())
	if err := s.c.net.set(dropped, both(named(n), s.others(false, n))...); err != nil {
		return err
	}
	for range 6 {
		_ = n.with(ctx, func(ctx context.Context, c *pgx.Conn) error { // until it is fenced
			_, err := c.Exec(ctx, "SELECT pg_switch_wal()")
			return err
		})
		if err := wait.Pause(ctx, time.Second/2); err != nil {
			return err
		}
	}
	return nil
}

// longQuery lets sessions on some standbys, or all, read a table that is then
// dropped: their replay waits for them, for as long as it takes.
func (s *scene) longQuery(ctx context.Context) error {
	standbys := s.c.standbys(s.primary())
	standbys = standbys[:1+s.rng.IntN(len(standbys))]
	s.target = "queries on " + strings.Join(named(standbys...), ", ") + "; "
	table := fmt.Sprintf("public.held%d", s.rng.Uint32())
	on := func(n *node, sql string) error {
		return n.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, sql)
			return err
		})
	}
	if err := on(s.primary(), "CREATE TABLE "+table+" (id int); GRANT ALL ON "+table+" TO app"); err != nil {
		return err
	}
	for _, n := range standbys {
		s.cleanup = append(s.cleanup, func() { _ = n.configure() })
		if err := s.configure(ctx, n, "max_standby_streaming_delay = -1", "max_standby_archive_delay = -1"); err != nil {
			return err
		}
		var conn *pgconn.PgConn
		err := waitFor(ctx, 10*time.Second, "a long query on "+n.name(), func(ctx context.Context) (err error) {
			drop(conn)
			if conn, err = pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=app dbname=repmgr application_name=report", n.dir, n.port)); err == nil {
				err = conn.Exec(ctx, "BEGIN; SELECT count(*) FROM "+table).Close()
			}
			return err
		})
		s.cleanup = append(s.cleanup, func() { drop(conn) })
		if err != nil {
			return err
		}
	}
	if err := on(s.primary(), "DROP TABLE "+table); err != nil {
		return err
	}
	return wait.Pause(ctx, time.Duration(s.rng.IntN(3000))*time.Millisecond)
}

// cascade puts one standby below another, which it returns. When all is well
// again every standby streams from the primary.
func (s *scene) cascade(ctx context.Context) (upstream *node, err error) {
	standbys := s.c.standbys(s.primary())
	i := s.rng.IntN(len(standbys))
	upstream, leaf := standbys[i], standbys[(i+1)%len(standbys)]
	s.target = leaf.name() + " below " + upstream.name() + "; "
	s.after = append(s.after, func(ctx context.Context) error {
		var now state
		err := waitFor(ctx, 20*time.Second, "a primary to follow", func(ctx context.Context) (err error) {
			now, err = s.c.healthy(ctx)
			return err
		})
		if err != nil || now.Primary == leaf {
			return err
		}
		return leaf.repmgr(ctx, "standby", "follow", fmt.Sprintf("--upstream-node-id=%d", now.Primary.id))
	})
	if err := leaf.repmgr(ctx, "standby", "follow", fmt.Sprintf("--upstream-node-id=%d", upstream.id)); err != nil {
		return upstream, err
	}
	err = waitFor(ctx, 20*time.Second, "a standby below a standby", func(ctx context.Context) error {
		if _, err := s.c.healthy(ctx); err != nil {
			return err
		}
		return upstream.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
			var below int
			err := c.QueryRow(ctx, "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1", leaf.name()).Scan(&below)
			if err == nil && below == 0 {
				err = errors.New("it does not stream from there")
			}
			return err
		})
	})
	return upstream, errors.Join(err, wait.Pause(ctx, 3*time.Second))
}
