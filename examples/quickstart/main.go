// Command quickstart builds a real four-node cluster on this machine and goes
// with it through the story of the repmgr manual: a primary, two standbys, a
// load, the loss of the primary, a promotion, a follower, a new node. Then it
// turns failover=automatic on, kills the primary once more, and watches. Beside
// each call of the library it prints the repmgr command of the same effect.
//
// It needs PostgreSQL's server programs and an OS user other than root. All it
// makes lies in one temporary directory; when it ends, in whatever way, its
// servers are stopped and the directory is gone.
//
//	-quick  less data and less time
//	-keep   leave the cluster running at the end, until ctrl-C
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr"
)

func main() {
	for _, kv := range os.Environ() { // the user's own servers are not meant here
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second ctrl-C is the system's
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "\nquickstart:", err)
		if ctx.Err() != nil {
			os.Exit(130) // as a shell has it
		}
		os.Exit(1)
	}
}

// story is the cluster, and where we are with it.
type story struct {
	*page
	*machine
	quick  bool
	began  time.Time
	events chan repmgr.Event
	node1  *node
	node2  *node
	node3  *node
	node4  *node

	monitors sync.WaitGroup
	bench    *task
	writer   *writer
	killed   time.Time
	acked    int64 // the last receipt that node1 acknowledged
	heir     *node // the standby that takes over
	follower *node // and the other one
	app      *application
	former   *node // the primary that was lost the second time
}

// node is a server, and the cluster as seen from there.
type node struct {
	*server
	*repmgr.Cluster
	cfg  repmgr.Config
	conf string             // its repmgr.conf
	stop context.CancelFunc // of its monitor
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "less data and less time")
	keep := flags.Bool("keep", false, "leave the cluster running at the end, until ctrl-C")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	m, err := newMachine()
	if err != nil {
		return err
	}
	s := &story{page: newPage(out), machine: m, quick: *quick, began: time.Now(), events: make(chan repmgr.Event, 1000)}
	s.page.dir = m.dir
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		switch {
		case err != nil && ctx.Err() != nil: // whatever it was that could not go on
			err = fmt.Errorf("%w: the servers are stopped, and the directory is removed", context.Cause(ctx))
		case err != nil:
			s.logs()
			if hint := repmgr.Hint(err); hint != "" {
				err = fmt.Errorf("%w\nHINT: %s", err, hint)
			}
		}
		cancel()
		if s.app != nil {
			s.app.end()
		}
		s.monitors.Wait()
		if err = errors.Join(err, m.close()); err == nil {
			s.took(time.Since(s.began), "All servers are stopped, and the directory is removed.")
		}
	}()
	s.say("A PostgreSQL cluster of four nodes on this machine, in %s", m.dir)
	s.say("Commands after a $ have the effect of the library call that runs here.")
	chapters := []func(context.Context) error{
		s.primary, s.standbys, s.load, s.loss, s.failover, s.growth, s.comparison, // the manual's
		s.automate, s.takeover, s.comeback, s.chronicle,
	}
	for _, chapter := range chapters {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	s.space()
	if *keep {
		s.say("The cluster runs until ctrl-C. To try these commands from another terminal:")
		s.say("cd %s", m.dir)
		if path, err := exec.LookPath("repmgr"); err == nil {
			s.say("PATH=%s:%s:$PATH", filepath.Dir(path), m.bin)
		}
		<-ctx.Done()
	}
	return nil
}

// add makes room for a node and loads its repmgr.conf.
func (s *story) add(id int) (*node, error) {
	server, conf, err := s.place(id)
	if err != nil {
		return nil, err
	}
	cfg, err := repmgr.LoadConfig(conf)
	if err != nil {
		return nil, err
	}
	cfg.MonitorInterval = 250 * time.Millisecond
	cfg.Notifiers = []repmgr.Notifier{repmgr.NotifierFunc(func(ctx context.Context, e repmgr.Event) error {
		select {
		case s.events <- e:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})}
	cluster, err := repmgr.New(cfg)
	return &node{server, cluster, cfg, conf, func() {}}, err
}

func (s *story) primary(ctx context.Context) (err error) {
	s.chapter("A primary")
	if s.node1, err = s.add(1); err != nil {
		return err
	}
	n := s.node1
	begin := time.Now()
	s.command("initdb -D %s -U postgres -A trust", n.dir)
	s.command("pg_ctl -D %s start", n.dir)
	if err := errors.Join(n.initdb(ctx), n.start(ctx)); err != nil {
		return err
	}
	s.took(time.Since(begin), "node1 runs on port %d, without fsync: it is only a demo", n.port)

	scale := 10
	if s.quick {
		scale = 1
	}
	begin = time.Now()
	s.command("pgbench -h 127.0.0.1 -p %d -U postgres -i -s %d postgres", n.port, scale)
	if err := s.run(ctx, "pgbench", "-h", "127.0.0.1", "-p", fmt.Sprint(n.port), "-U", "postgres", "-i", "-q", "-s", fmt.Sprint(scale), "postgres"); err != nil {
		return err
	}
	s.took(time.Since(begin), "node1 has the data of pgbench: %s accounts", counted(int64(scale)*100_000))

	begin = time.Now()
	s.command("cat %s", n.conf)
	text, _ := os.ReadFile(n.conf)
	for line := range strings.Lines(string(text)) {
		s.say("%s", strings.TrimSpace(line))
	}
	s.command("repmgr -f %s primary register", n.conf)
	rec, err := n.RegisterPrimary(ctx, repmgr.RegisterOptions{})
	if err != nil {
		return err
	}
	s.took(time.Since(begin), "%s is registered as the %s", rec.Name, rec.Role)
	return s.show(ctx, n)
}

func (s *story) standbys(ctx context.Context) (err error) {
	s.chapter("Two standbys of node1")
	if s.node2, err = s.addStandby(ctx, 2, s.node1); err != nil {
		return err
	}
	s.space()
	if s.node3, err = s.addStandby(ctx, 3, s.node1); err != nil {
		return err
	}
	return s.show(ctx, s.node1)
}

// addStandby clones a node, starts it and registers it.
func (s *story) addStandby(ctx context.Context, id int, from *node) (*node, error) {
	n, err := s.add(id)
	if err != nil {
		return nil, err
	}
	s.command("repmgr -f %s -D %s -p %d -p %d -c standby clone 127.0.0.1", n.conf, n.dir, from.port, n.port)
	res, err := n.Clone(ctx, repmgr.CloneOptions{
		Source: from.conninfo(), Dir: n.dir, LocalPort: n.port, FastCheckpoint: true, Progress: s.progress,
	})
	s.endProgress()
	if err != nil {
		return nil, err
	}
	s.took(res.Elapsed, "%s is a copy of %s: %s, %s a second", n.name, from.name, bytesOf(res.Bytes), bytesOf(int64(float64(res.Bytes)/res.Elapsed.Seconds())))

	s.command("pg_ctl -D %s start", n.dir)
	begin := time.Now()
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	s.took(time.Since(begin), "%s runs on port %d", n.name, n.port)

	s.command("repmgr -f %s standby register --wait-sync=10", n.conf)
	begin = time.Now()
	rec, err := n.RegisterStandby(ctx, repmgr.RegisterOptions{WaitSync: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	s.took(time.Since(begin), "%s is registered as a %s of %s", rec.Name, rec.Role, rec.UpstreamName)
	return n, nil
}

// monitor does for one node what a repmgrd would do.
func (s *story) monitor(ctx context.Context, n *node) error {
	m, err := repmgr.NewMonitor(n.cfg)
	if err != nil {
		return err
	}
	s.command("repmgrd -f %s", n.conf)
	ctx, n.stop = context.WithCancel(ctx)
	s.monitors.Go(func() { _ = m.Run(ctx) }) // it returns when ctx ends, and then nil
	return nil
}

func (s *story) load(ctx context.Context) (err error) {
	s.chapter("Load, and how far the standbys are behind")
	for _, n := range []*node{s.node1, s.node2, s.node3} {
		if err := s.monitor(ctx, n); err != nil {
			return err
		}
	}
	s.say("Each node has a monitor, which measures its lag four times a second.")
	if s.bench, err = s.pgbench(s.node1, 600); err != nil {
		return err
	}
	if s.writer, err = startWriter(ctx, s.node1.server, 1); err != nil {
		return err
	}
	s.say("An application of ours commits receipts 1, 2, 3, ... and counts them.")
	s.command(`psql -h 127.0.0.1 -p %d -U postgres -d postgres -c "SELECT * FROM repl_status"`, s.node1.port)
	return s.watchLag(ctx)
}

func (s *story) loss(ctx context.Context) error {
	s.chapter("node1 is lost")
	s.killed = time.Now()
	n, err := s.node1.kill()
	if err != nil {
		return err
	}
	s.acked = s.writer.end()
	s.command("kill -9 (all %d processes of node1, in the middle of its work)", n)
	s.took(time.Since(s.killed), "node1 is dead; it had acknowledged %s receipts", counted(s.acked))
	s.bench.kill()
	if err := s.await(ctx, repmgr.EventUpstreamDisconnect, s.node2, s.node3); err != nil {
		return err
	}
	if err := s.findHeir(ctx); err != nil {
		return err
	}
	return s.show(ctx, s.heir)
}

func (s *story) failover(ctx context.Context) error {
	s.chapter(s.heir.name + " takes over, " + s.follower.name + " follows")
	s.command("repmgr -f %s standby promote", s.heir.conf)
	promoted, err := s.heir.Promote(ctx, repmgr.PromoteOptions{})
	if err != nil {
		return err
	}
	s.took(promoted.Elapsed, "%s is the primary, on timeline %d", promoted.Node.Name, promoted.Timeline)

	present, err := query[int64](ctx, s.heir.server, `SELECT count(*) FROM receipts WHERE id <= $1`, s.acked)
	if err != nil {
		return err
	}
	switch lost := s.acked - present; lost {
	case 0:
		s.say("It has all %s acknowledged receipts. That was luck: replication", counted(s.acked))
		s.say("is asynchronous here, and the last commits before a crash may be lost.")
	default:
		s.say("It has %s of the %s acknowledged receipts; lost: %d. Replication is", counted(present), counted(s.acked), lost)
		s.say("asynchronous here: node1 had promised more than it had sent.")
	}
	if s.writer, err = startWriter(ctx, s.heir.server, s.acked+1000); err != nil { // a new book: no number twice
		return err
	}
	s.took(time.Since(s.killed), "The application writes again, this long after the loss:")

	s.command("repmgr -f %s standby follow", s.follower.conf)
	followed, err := s.follower.Follow(ctx, repmgr.FollowOptions{})
	if err != nil {
		return err
	}
	s.took(followed.Elapsed, "%s streams from %s, without a restart", followed.Node.Name, followed.Upstream.Name)
	return s.show(ctx, s.heir)
}

func (s *story) growth(ctx context.Context) (err error) {
	s.chapter("node4 is cloned from " + s.heir.name)
	seconds := 6
	if s.quick {
		seconds = 2
	}
	if s.bench, err = s.pgbench(s.heir, seconds); err != nil {
		return err
	}
	s.say("The load goes on, on %s now.", s.heir.name)
	if s.node4, err = s.addStandby(ctx, 4, s.heir); err != nil {
		return err
	}
	if err := s.monitor(ctx, s.node4); err != nil {
		return err
	}
	report, err := s.bench.wait(ctx)
	if err != nil {
		return err
	}
	n, tps, err := readPgbench(report)
	if err != nil {
		return err
	}
	s.say("pgbench committed %s transactions meanwhile, %.0f a second.", counted(n), tps)
	return s.show(ctx, s.heir)
}

func (s *story) comparison(ctx context.Context) error {
	s.chapter("Are the rows the same?")
	last := s.writer.end()
	if s.writer.err != nil {
		return fmt.Errorf("write on %s: %w", s.heir.name, s.writer.err)
	}
	nodes := []*node{s.heir, s.follower, s.node4}
	begin := time.Now()
	if err := s.inStep(ctx, nodes); err != nil {
		return err
	}
	s.took(time.Since(begin), "%s and node4 have replayed all that %s has written", s.follower.name, s.heir.name)
	if err := s.compare(ctx, nodes); err != nil {
		return err
	}
	first := s.acked + 1000
	for _, n := range nodes {
		got, err := query[int64](ctx, n.server, `SELECT count(*) FROM receipts WHERE id BETWEEN $1 AND $2`, first, last)
		if err != nil {
			return err
		}
		if want := last - first + 1; got != want {
			return fmt.Errorf("%s has %d of the %d receipts that %s acknowledged", n.name, got, want, s.heir.name)
		}
	}
	s.say("All %s receipts that %s acknowledged are on each of them.", counted(last-first+1), s.heir.name)
	return nil
}

func (s *story) chronicle(ctx context.Context) error {
	s.chapter("What was written down")
	s.command("repmgr -f %s cluster event --limit=100", s.heir.conf)
	events, err := s.heir.Events(ctx, repmgr.EventFilter{Limit: 100})
	if err != nil {
		return err
	}
	s.eventTable(events)
	return nil
}
