package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// Steps are where a daemon can be made to kill itself in a failover.
var Steps = []string{"surveyed", "recruited", "chosen", "waited", "promoted", "repointed", "ruled"}

const moment = 300 * time.Millisecond

// killings: SIGKILL of one process or of all, and power cuts.
func killings() []Nemesis {
	all := []Nemesis{
		{Name: "kill postmaster", Expect: Failover, Weight: 30, Pairs: true, Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.primary())
			if err := n.killPostmaster(ctx); err != nil && (!s.second || n.postmaster() != 0) { // the other fault may have ended its machine
				return err
			}
			return nil
		}},
		{Name: "kill server", Expect: Failover, Weight: 20, Pairs: true, Do: func(ctx context.Context, s *scene) error {
			return killAll(ctx, "the server", s.hit(s.primary()).serverProcesses)
		}},
		{Name: "power off primary", Expect: Failover, Weight: 20, Pairs: true, Hold: span(time.Second, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			return s.hit(s.primary()).power(ctx)
		}, Undo: func(ctx context.Context, s *scene) error { return s.boot(ctx, s.primary()) }},
		{Name: "power off standby", Expect: None, Pairs: true, Hold: span(moment, 3*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.standby())
			s.cleanup = append(s.cleanup, func() { _ = s.boot(ctx, n) })
			return n.power(ctx)
		}},
		{Name: "power off primary and standby", Expect: Either, Needs: needsTwo, Hold: span(time.Second, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			p, n := s.primary(), s.standby()
			s.hit(p, n)
			s.cleanup = append(s.cleanup, func() { _ = s.boot(ctx, p); _ = s.boot(ctx, n) })
			return errors.Join(p.power(ctx), n.power(ctx))
		}},
		{Name: "kill standby", Expect: None, Pairs: true, Hold: span(moment, 2*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.standby())
			s.cleanup = append(s.cleanup, func() { _ = n.launchServer(ctx) })
			return killAll(ctx, "the server", n.serverProcesses)
		}},
		{Name: "kill backend", Expect: None, Hold: span(moment, time.Second), Do: func(_ context.Context, s *scene) error {
			n := s.hit(s.primary())
			for _, pid := range n.serverProcesses() {
				if strings.Contains(title(pid), " app repmgr ") {
					return syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			return errors.New("no backend of a client found")
		}},
		{Name: "kill daemon of primary", Expect: None, Pairs: true, Hold: span(moment, 2*time.Second), Do: func(_ context.Context, s *scene) error {
			s.hit(s.primary()).signalDaemon(syscall.SIGKILL)
			return nil
		}},
		{Name: "kill daemon of standby", Expect: None, Pairs: true, Hold: span(moment, 2*time.Second), Do: func(_ context.Context, s *scene) error {
			s.hit(s.standby()).signalDaemon(syscall.SIGKILL)
			return nil
		}},
		{Name: "kill all daemons", Expect: None, Hold: span(moment, 2*time.Second), Do: func(_ context.Context, s *scene) error {
			for _, n := range s.c.nodes {
				s.hit(n).signalDaemon(syscall.SIGKILL)
			}
			return nil
		}},
		{Name: "kill witness", Expect: None, Needs: needsWitness, Hold: span(moment, 2*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.c.nodes[len(s.c.nodes)-1])
			s.cleanup = append(s.cleanup, func() { _ = s.boot(ctx, n) })
			return n.power(ctx)
		}},
		{Name: "kill etcd", Expect: None, Needs: needsEtcd, Hold: span(time.Second, 6*time.Second), Do: func(ctx context.Context, s *scene) error {
			s.target = etcdName
			s.c.etcd.kill()
			s.cleanup = append(s.cleanup, func() { _ = s.c.etcd.launch(ctx) })
			return nil
		}},
	}
	for _, step := range Steps {
		n := dieAt(step)
		if step == "waited" { // nobody waits with quorum
			n.Needs |= needsOff
		}
		all = append(all, n)
	}
	return all
}

// boot starts a machine as an init system does: the daemon first, or the server first.
func (s *scene) boot(ctx context.Context, n *node) error {
	serverFirst := s.rng.IntN(2) == 0 || n.witness
	if serverFirst {
		s.target += ", server before daemon"
		if err := n.launchServer(ctx); err != nil {
			return err
		}
	}
	_, noStandby := os.Stat(filepath.Join(n.data(), "standby.signal")) // another fault may have made one of the primary
	_, notFenced := os.Stat(filepath.Join(n.data(), "repmgr_fenced"))
	err := n.startDaemon()
	if !serverFirst && noStandby == nil && notFenced != nil { // nobody else starts a standby
		err = errors.Join(err, n.launchServer(ctx))
	}
	return err
}

// dieAt kills the primary's postmaster, and every daemon that reaches that step of the failover.
func dieAt(step string) Nemesis {
	return Nemesis{Name: "die when " + step, Expect: Failover, Weight: 4, Needs: needsDieAt, Do: func(ctx context.Context, s *scene) error {
		err := s.c.each(s.c.nodes, func(n *node) error { return n.mayDie(ctx, step) })
		if err != nil {
			return err
		}
		err = waitFor(ctx, 20*time.Second, "the daemons to be back", func(ctx context.Context) error {
			_, err := s.c.healthy(ctx)
			return err
		})
		if err == nil {
			err = wait.Pause(ctx, 2*time.Second) // they have looked around
		}
		s.now()
		return errors.Join(err, s.hit(s.primary()).killPostmaster(ctx))
	}, Undo: func(_ context.Context, s *scene) error {
		for _, n := range s.c.nodes { // who did not die must not do so later
			n.mu.Lock()
			n.env = nil
			n.mu.Unlock()
			n.signalDaemon(syscall.SIGKILL)
		}
		return nil
	}}
}

// freeze stops processes for the time of the fault. It waits for some, where
// another fault of the same moment has ended them; that one may keep them down.
// What they have begun meanwhile is stopped as well.
func (s *scene) freeze(ctx context.Context, list func(s *scene) []int) error {
	var stopped []int
	target := s.target
	err := waitFor(ctx, 10*time.Second, "processes to stop", func(context.Context) error {
		s.target = target // list adds to it
		stopped = slices.DeleteFunc(list(s), func(pid int) bool { return pid <= 1 })
		if len(stopped) == 0 {
			return errors.New("there are none")
		}
		return nil
	})
	if s.second && len(stopped) == 0 {
		return nil
	}
	for more := stopped; len(more) > 0; {
		signalAll(more, syscall.SIGSTOP)
		s.target = target
		more = slices.DeleteFunc(list(s), func(pid int) bool { return pid <= 1 || slices.Contains(stopped, pid) })
		stopped = append(stopped, more...)
	}
	s.cleanup = append(s.cleanup, func() { signalAll(stopped, syscall.SIGCONT) })
	return err
}

// some are the processes of a server by a word of their titles.
func (n *node) some(words ...string) []int {
	return pids(func(pid int) bool {
		if !worksIn(n.data())(pid) {
			return false
		}
		t := title(pid)
		for _, w := range words {
			if strings.Contains(t, w) {
				return true
			}
		}
		return false
	})
}

// stops: SIGSTOP, and SIGCONT after a while.
func stops() []Nemesis {
	stop := func(name string, e Expect, pairs bool, from, to time.Duration, list func(s *scene) []int) Nemesis {
		return Nemesis{Name: name, Expect: e, Pairs: pairs, Hold: span(from, to), Do: func(ctx context.Context, s *scene) error { return s.freeze(ctx, list) }}
	}
	long := stop("stop postmaster 15 s", Failover, false, 15*time.Second, 17*time.Second, func(s *scene) []int { return []int{s.hit(s.primary()).postmaster()} })
	long.Weight = 2
	suspend := stop("suspend machine 20-30 s", Failover, false, 20*time.Second, 30*time.Second, func(s *scene) []int { return s.hit(s.primary()).processes() })
	suspend.Weight = 2
	suspendAll := stop("suspend all machines 2-12 s", Either, false, 2*time.Second, 12*time.Second, func(s *scene) (all []int) {
		for _, n := range s.c.nodes {
			all = append(all, n.processes()...)
		}
		s.target = "all"
		return all
	})
	return []Nemesis{
		stop("stop postmaster 1-5 s", None, true, time.Second, 5*time.Second, func(s *scene) []int { return []int{s.hit(s.primary()).postmaster()} }),
		long, suspend, suspendAll,
		stop("stop server under 1 s", None, true, 100*time.Millisecond, 900*time.Millisecond, func(s *scene) []int { return s.hit(s.primary()).serverProcesses() }),
		stop("stop server 4-12 s", Either, true, 4*time.Second, 12*time.Second, func(s *scene) []int { return s.hit(s.primary()).serverProcesses() }),
		stop("stop machine 8-10 s", Failover, true, 8*time.Second, 10*time.Second, func(s *scene) []int { return s.hit(s.primary()).processes() }),
		stop("stop machine under 1 s", None, true, 100*time.Millisecond, 900*time.Millisecond, func(s *scene) []int { return s.hit(s.primary()).processes() }),
		stop("stop standby 1-6 s", None, true, time.Second, 6*time.Second, func(s *scene) []int { return s.hit(s.standby()).serverProcesses() }),
		stop("stop daemon of primary", None, true, time.Second, 6*time.Second, func(s *scene) []int { return daemonOf(s.hit(s.primary())) }),
		stop("stop daemon of standby", None, true, time.Second, 6*time.Second, func(s *scene) []int { return daemonOf(s.hit(s.standby())) }),
		stop("stop walwriter and checkpointer", None, false, time.Second, 4*time.Second, func(s *scene) []int { return s.hit(s.primary()).some(": walwriter", ": checkpointer") }),
		stop("stop walsenders", None, false, time.Second, 4*time.Second, func(s *scene) []int { return s.hit(s.primary()).some(": walsender") }),
	}
}

func daemonOf(n *node) []int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.daemon == nil {
		return nil
	}
	return []int{n.daemon.cmd.Process.Pid}
}

// operators: what people do, at a good or a bad moment.
func operators() []Nemesis {
	return []Nemesis{
		{Name: "clean shutdown of primary", Expect: None, Hold: span(time.Second, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			return s.hit(s.primary()).stopServer(ctx)
		}, Undo: func(ctx context.Context, s *scene) error { return s.primary().launchServer(ctx) }},
		{Name: "restart of primary", Expect: None, Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.primary())
			return errors.Join(n.stopServer(ctx), n.launchServer(ctx))
		}},
		{Name: "clean shutdown of standby", Expect: None, Hold: span(moment, 2*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.standby())
			s.cleanup = append(s.cleanup, func() { _ = n.launchServer(ctx) })
			return n.stopServer(ctx)
		}},
		{Name: "pause, then kill postmaster", Expect: None, Needs: needsFailover, Hold: span(3*time.Second, 5*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.standby()
			// Not while the primary still starts: then it would be due.
			s.cleanup = append(s.cleanup, func() {
				_ = waitFor(ctx, 20*time.Second, "unpaused", func(ctx context.Context) error {
					if _, err := s.c.healthy(ctx); err != nil {
						return err
					}
					return n.repmgr(ctx, "service", "unpause")
				})
			})
			if err := n.repmgr(ctx, "service", "pause"); err != nil {
				return err
			}
			return killAll(ctx, "the server", s.hit(s.primary()).serverProcesses)
		}, Undo: func(ctx context.Context, s *scene) error { return s.primary().launchServer(ctx) }},
		{Name: "power cut of all, started in any order", Expect: Either, Weight: 15, Hold: span(0, moment), Do: func(ctx context.Context, s *scene) error {
			s.target = "all"
			return s.c.each(s.c.nodes, func(n *node) error { return n.power(ctx) })
		}, Undo: func(ctx context.Context, s *scene) error {
			var errs []error
			for _, i := range s.rng.Perm(len(s.c.nodes)) {
				n := s.c.nodes[i]
				s.target += " " + n.name()
				errs = append(errs, n.launchServer(ctx), n.startDaemon(), wait.Pause(ctx, time.Duration(s.rng.IntN(1500))*time.Millisecond))
			}
			return errors.Join(errs...)
		}},
	}
}

// exhaustions: connection slots, disk space, processor.
func exhaustions() []Nemesis {
	return []Nemesis{
		{Name: "connection slots used up", Expect: None, Hold: span(2*time.Second, 5*time.Second), Do: func(ctx context.Context, s *scene) error {
			return s.occupy(ctx, s.hit(s.primary()))
		}},
		{Name: "disk of primary full", Expect: Either, Needs: needsNetwork, Weight: 5, Hold: span(3*time.Second, 6*time.Second), Do: func(_ context.Context, s *scene) error {
			n := s.hit(s.primary())
			s.cleanup = append(s.cleanup, func() { _ = emptyDisk(n.disk()) })
			return fillDisk(n.disk())
		}},
		{Name: "disk of primary stalls", Expect: Either, Needs: needsExt4, Weight: 20, Hold: span(2*time.Second, 14*time.Second), Do: func(_ context.Context, s *scene) error {
			return s.stall(s.hit(s.primary()).disks()...)
		}},
		{Name: "data volume of primary stalls, its WAL goes on", Expect: Either, Needs: needsExt4, Hold: span(2*time.Second, 14*time.Second), Do: func(_ context.Context, s *scene) error {
			return s.stall(s.hit(s.primary()).disk())
		}},
		{Name: "data volume of primary stalls, and it is cut off, clients reach it", Expect: Failover, Needs: needsExt4, Hold: span(6*time.Second, 9*time.Second), Do: func(_ context.Context, s *scene) error {
			n := s.hit(s.primary())
			return errors.Join(s.stall(n.disk()), s.c.net.set(dropped, both(named(n), s.others(false, n))...))
		}},
		{Name: "disk of standby stalls", Expect: None, Needs: needsExt4, Hold: span(2*time.Second, 8*time.Second), Do: func(_ context.Context, s *scene) error {
			return s.stall(s.hit(s.standby()).disks()...)
		}},
		{Name: "disk of standby full", Expect: None, Needs: needsNetwork, Weight: 5, Hold: span(2*time.Second, 4*time.Second), Do: func(ctx context.Context, s *scene) error {
			n := s.hit(s.standby())
			s.cleanup = append(s.cleanup, func() {
				_ = emptyDisk(n.disk())
				if n.postmaster() == 0 {
					_ = n.launchServer(ctx)
				}
			})
			return fillDisk(n.disk())
		}},
		{Name: "processor starved", Expect: None, Pairs: true, Hold: span(4*time.Second, 8*time.Second), Patient: true, Do: func(ctx context.Context, s *scene) error {
			s.target = "all"
			ctx, cancel := context.WithCancel(ctx)
			var hogs []*exec.Cmd
			s.cleanup = append(s.cleanup, func() {
				cancel()
				for _, h := range hogs {
					_ = h.Wait()
				}
			})
			for range 4 * runtime.NumCPU() {
				hog := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
				behind(hog)
				if err := hog.Start(); err != nil {
					return err
				}
				hogs = append(hogs, hog)
			}
			return nil
		}},
	}
}

// stall stops all writing to the disks for the time of the fault.
func (s *scene) stall(disks ...string) (err error) {
	for _, disk := range disks {
		s.cleanup = append(s.cleanup, func() { _ = freeze(disk, false) })
		err = errors.Join(err, freeze(disk, true))
	}
	return err
}

// occupy takes every connection that the server gives to an ordinary user.
func (s *scene) occupy(ctx context.Context, n *node) error {
	var taken []*pgconn.PgConn
	s.cleanup = append(s.cleanup, func() {
		for _, c := range taken {
			drop(c)
		}
	})
	for range maxConnections {
		limit, cancel := context.WithTimeout(ctx, 2*time.Second)
		c, err := pgconn.Connect(limit, fmt.Sprintf("host=%s port=%d user=app dbname=repmgr application_name=hog", n.dir, n.port))
		cancel()
		if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == "53300" {
			return nil
		}
		if err != nil {
			return err
		}
		taken = append(taken, c)
	}
	return nil
}

// fillDisk leaves no byte on the disk; a server in its middle sees it at its next file.
func fillDisk(disk string) error {
	fd, err := unix.Open(disk+"/ballast", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for step := int64(64 << 20); step >= 4096; step /= 2 {
		for {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
			if unix.Fallocate(fd, 0, st.Size, step) != nil {
				break
			}
		}
	}
	return nil
}

func emptyDisk(disk string) error { return unix.Unlink(disk + "/ballast") }
