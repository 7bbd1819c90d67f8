package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// strays: somebody promotes a standby past everybody.
func strays() []Nemesis {
	promote := func(ctx context.Context, s *scene) (*node, error) {
		n := s.hit(s.standby())
		s.stray = n
		s.now()
		return n, n.with(ctx, func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, "SELECT pg_promote(false)")
			return err
		})
	}
	return []Nemesis{
		{Name: "promotion by hand beside the primary", Expect: None, Needs: needsFailover, Hold: span(6*time.Second, 9*time.Second), Do: func(ctx context.Context, s *scene) error {
			_, err := promote(ctx, s)
			return err
		}},
		{Name: "promotion by hand undone, then kill server", Expect: Either, Helped: true, Needs: needsFailover | needsTwo, Hold: span(6*time.Second, 9*time.Second), Do: func(ctx context.Context, s *scene) error {
			n, err := promote(ctx, s)
			if err == nil {
				err = waitFor(ctx, 10*time.Second, "the promotion", func(ctx context.Context) error {
					if v := n.view(ctx); v.InRecovery || !v.Up {
						return errors.Join(errors.New("it is a standby"), v.Err)
					}
					return nil
				})
			}
			err = errors.Join(err,
				killAll(ctx, "the server", n.serverProcesses),
				n.run(ctx, "touch", filepath.Join(n.data(), "standby.signal")),
				n.launchServer(ctx),
				wait.Pause(ctx, time.Duration(500+s.rng.IntN(5000))*time.Millisecond))
			return errors.Join(err, s.killServer(ctx))
		}},
	}
}

// configurations: files that are wrong, logins that are rejected, and daemons that
// would or could not do what they should.
func configurations() []Nemesis {
	const from, to = 6 * time.Second, 9 * time.Second
	// A daemon of the primary that stops nobody: with off nobody may take its place.
	alone := func(name string, change func(s *scene, n *node) (back func(), err error)) Nemesis {
		return Nemesis{Name: name + ", cut off, clients reach it", Expect: Failover, Needs: needsFailover | needsNetwork, Hold: span(from, to), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.primary())
			back, err := change(s, n)
			if s.c.o.Quorum {
				s.cleanup = append(s.cleanup, back)
			} else { // it must not stop the server as long as it is alone
				s.expect = None
				s.after = append(s.after, func(context.Context) error { back(); return nil })
			}
			err = errors.Join(err, wait.Pause(ctx, 5*time.Second), waitFor(ctx, 20*time.Second, "the daemon to be seen", func(ctx context.Context) error {
				_, err := s.c.healthy(ctx)
				return err
			}))
			s.now()
			return errors.Join(err, s.c.net.set(dropped, both(named(n), s.others(false, n))...))
		}}
	}
	return []Nemesis{
		{Name: "broken configuration of a standby, kill server", Expect: Either, Needs: needsFailover, Hold: span(moment, 8*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.standby())
			if voters := len(s.c.names()); s.c.etcd == nil && voters-2 > voters/2 { // enough can vote without the two
				s.expect = Failover
			}
			return errors.Join(s.breakConf(ctx, n), s.killServer(ctx))
		}},
		{Name: "broken configuration of primary, kill server", Expect: Failover, Needs: needsFailover, Hold: span(moment, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			return errors.Join(s.breakConf(ctx, s.primary()), s.killServer(ctx))
		}},
		{Name: "logins rejected, daemons of standbys anew", Expect: None, Steady: true, Needs: needsFailover, Hold: span(5*time.Second, 9*time.Second), Do: func(ctx context.Context, s *scene) error {
			return s.reject(ctx, s.c.standbys(s.primary()))
		}},
		// The primary's own server rejects its daemon then, and nobody sees the standbys' replies: with off it is
		// fenced, and with quorum it is not, since all are there to reject the login.
		{Name: "logins rejected, all daemons anew", Expect: Either, Needs: needsFailover, Hold: span(5*time.Second, 9*time.Second), Do: func(ctx context.Context, s *scene) error {
			if s.c.o.Quorum {
				s.expect, s.steady = None, true
			}
			return s.reject(ctx, s.c.dataNodes())
		}},
		alone("manual daemon of primary", func(s *scene, n *node) (func(), error) {
			set := func(mode string) error {
				text := strings.Replace(s.c.o.Suite.conf(n), "failover=automatic", "failover="+mode, 1)
				err := os.WriteFile(n.confFile(), []byte(text), 0o644)
				n.signalDaemon(syscall.SIGHUP)
				return err
			}
			return func() { _ = set("automatic") }, set("manual")
		}),
		alone("daemon of primary that can not fence", func(s *scene, n *node) (func(), error) {
			if s.c.user == nil {
				return func() {}, errors.New("not root: a daemon can not run as another user")
			}
			set := func(how inability) {
				n.mu.Lock()
				n.unable = how
				n.mu.Unlock()
				n.signalDaemon(syscall.SIGKILL)
			}
			how := []inability{foreignUser, foreignSpace}[s.rng.IntN(2)]
			s.target += " " + string(how)
			set(how)
			return func() { set("") }, nil
		}),
	}
}

// breakConf leaves an error in the configuration of a node's server, until the end of the fault.
func (s *scene) breakConf(ctx context.Context, n *node) error {
	s.cleanup = append(s.cleanup, func() { _ = n.configure() })
	return errors.Join(n.configure("this is no = 'setting"), wait.Pause(ctx, time.Duration(s.rng.IntN(4000))*time.Millisecond))
}

// reject refuses the daemons' login on all nodes, while replication goes on, and
// starts the daemons of some anew, one after the other.
func (s *scene) reject(ctx context.Context, anew []*node) error {
	hba := func(n *node) string { return filepath.Join(n.data(), "pg_hba.conf") }
	for _, n := range s.c.nodes {
		was, err := os.ReadFile(hba(n))
		if err != nil {
			return err
		}
		put := func(text string) error {
			err := os.WriteFile(hba(n), []byte(text), 0o600)
			signalAll([]int{n.postmaster()}, syscall.SIGHUP)
			return err
		}
		s.cleanup = append(s.cleanup, func() { _ = put(string(was)) })
		if err := put("host repmgr repmgr 0.0.0.0/0 reject\n" + string(was)); err != nil {
			return err
		}
	}
	for _, n := range anew {
		if err := wait.Pause(ctx, moment); err != nil {
			return err
		}
		s.hit(n).signalDaemon(syscall.SIGKILL)
	}
	return nil
}

// namesakes: a copy of a standby streams under its name.
func namesakes() []Nemesis {
	return []Nemesis{
		{Name: "two servers of one name, the real one cut off", Expect: None, Needs: needsFailover | needsNetwork, Hold: span(4*time.Second, 8*time.Second), Do: func(ctx context.Context, s *scene) error {
			return s.copyOf(ctx, s.standby())
		}},
		{Name: "two servers of one name, the real one cut off, then kill server", Expect: Either, Helped: true, Needs: needsFailover | needsNetwork, Hold: span(moment, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.standby()
			if err := s.copyOf(ctx, n); err != nil {
				return err
			}
			// What the copy alone has acknowledged until it is noticed would be lost by a failover then.
			if err := wait.Pause(ctx, time.Duration(3000+s.rng.IntN(4000))*time.Millisecond); err != nil {
				return err
			}
			// From here on the copy alone may receive.
			var receivers []int
			for _, other := range s.c.standbys(s.primary()) {
				receivers = append(receivers, other.some(": walreceiver")...)
			}
			signalAll(receivers, syscall.SIGSTOP)
			s.cleanup = append(s.cleanup, func() { signalAll(receivers, syscall.SIGCONT) })
			return errors.Join(wait.Pause(ctx, moment), s.killServer(ctx))
		}},
	}
}

// copyOf starts a copy of a standby on the spare machine, as one restores a backup
// in the wrong place, and then cuts the real one off.
func (s *scene) copyOf(ctx context.Context, n *node) error {
	spare := s.c.spare
	s.cleanup = append(s.cleanup, func() {
		_ = spare.power(ctx)
		_ = spare.clear()
	})
	err := errors.Join(
		spare.prepare(),
		spare.run(ctx, filepath.Join(s.c.o.BinDir, "pg_basebackup"), "-h", s.primary().m.ip, "-p", fmt.Sprint(s.primary().port), "-U", "repmgr", "-D", spare.data(), "-X", "stream", "-c", "fast"),
		spare.run(ctx, "cp", filepath.Join(n.data(), "postgresql.auto.conf"), spare.data()),
		spare.run(ctx, "touch", filepath.Join(spare.data(), "standby.signal")),
		spare.launchUnscreened(ctx))
	if err != nil {
		return err
	}
	err = waitFor(ctx, 20*time.Second, "a second "+n.name(), func(ctx context.Context) error {
		return s.primary().with(ctx, func(ctx context.Context, c *pgx.Conn) error {
			var streams int
			err := c.QueryRow(ctx, "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'", n.name()).Scan(&streams)
			if err == nil && streams < 2 {
				err = fmt.Errorf("%d stream under that name", streams)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	s.now()
	return s.c.net.set(dropped, both(named(s.hit(n)), s.others(true, n))...)
}
