package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/pgrepmgr/repmgr"
)

// What each example begins with, as a program on node 2.
var (
	ctx        = context.Background()
	cfg        = repmgr.Config{NodeID: 2, Conninfo: "host=node2 user=repmgr dbname=repmgr"}
	cluster, _ = repmgr.New(cfg)
)

// New checks everything and opens nothing; all faults come back at once.
func ExampleNew() {
	cluster, err := repmgr.New(repmgr.Config{NodeID: 2, Conninfo: "host=node2 user=repmgr dbname=repmgr"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(cluster.Config().NodeName)

	_, err = repmgr.New(repmgr.Config{NodeID: -1, EventWebhookURL: "pager"})
	var wrong *repmgr.ConfigError
	if errors.As(err, &wrong) {
		fmt.Println(len(wrong.Faults), "faults, of", wrong.Faults[0].Key, "and", wrong.Faults[1].Key)
	}
	// Output:
	// node2
	// 2 faults, of node_id and event_webhook_url
}

// On the primary, before any standby. It makes the metadata schema as well.
func ExampleCluster_RegisterPrimary() {
	cluster, err := repmgr.New(repmgr.Config{NodeID: 1, ClusterName: "test", Conninfo: "host=node1 user=repmgr dbname=repmgr"})
	if err != nil {
		log.Fatal(err)
	}
	node, err := cluster.RegisterPrimary(ctx, repmgr.RegisterOptions{})
	if errors.Is(err, repmgr.ErrRegistered) {
		return // as it should be
	}
	if err != nil {
		log.Fatal(err, " ", repmgr.Hint(err))
	}
	fmt.Println(node.Name, "is the", node.Role)
}

// A new standby: copy, start, register. Starting is the caller's part, because
// only the caller knows by which service manager.
func ExampleCluster_Clone() {
	res, err := cluster.Clone(ctx, repmgr.CloneOptions{
		Source: "host=node1 user=repmgr dbname=repmgr",
		Dir:    "/srv/pg",
		Progress: func(p repmgr.CopyProgress) {
			log.Printf("%s: %d of %d bytes", p.Phase, p.Done, p.Total)
		},
	})
	if err != nil {
		log.Fatal(err) // and nothing was left behind
	}
	log.Printf("%d bytes in %s", res.Bytes, res.Elapsed)
	if err := exec.Command("systemctl", "start", "postgresql").Run(); err != nil {
		log.Fatal(err)
	}
	if _, err := cluster.RegisterStandby(ctx, repmgr.RegisterOptions{}); err != nil {
		log.Fatal(err)
	}
}

// With DryRun everything is looked at, and nothing is changed.
func ExampleCluster_Clone_dryRun() {
	res, err := cluster.Clone(ctx, repmgr.CloneOptions{Source: "host=node1", Dir: "/srv/pg", DryRun: true})
	for _, c := range res.Checks {
		fmt.Println(c.Name, c.OK, c.Detail)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// The primary is lost: this standby takes over, and the others follow it.
func ExampleCluster_Promote() {
	res, err := cluster.Promote(ctx, repmgr.PromoteOptions{SiblingsFollow: true})
	switch {
	case errors.Is(err, repmgr.ErrPrimaryExists):
		log.Fatal("not lost: ", err)
	case errors.Is(err, repmgr.ErrMetadata):
		log.Print("promoted, but its row was not written: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Printf("primary on timeline %d after %s; %d of %d standbys follow\n",
		res.Timeline, res.Elapsed, len(res.Following), len(res.Siblings))
}

// Another node has been promoted: this standby streams from that one now,
// without a restart.
func ExampleCluster_Follow() {
	res, err := cluster.Follow(ctx, repmgr.FollowOptions{Wait: true})
	switch {
	case errors.Is(err, repmgr.ErrTimelineDiverged):
		log.Fatal("this node has WAL that the new primary never had: clone it again. ", err)
	case errors.Is(err, repmgr.ErrNotAttached):
		log.Fatal("re-pointed, but not streaming yet: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println(res.Node.Name, "streams from", res.Upstream.Name)
}

// All nodes are asked at once: one that does not answer costs at most one
// connect_timeout.
func ExampleCluster_Status() {
	st, err := cluster.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Reach != repmgr.ReachOK {
			fmt.Println(n.Name, "is", n.Reach)
			continue
		}
		fmt.Println(n.Name, n.Running, "upstream:", n.Upstream, n.Attached)
	}
	for _, issue := range st.Issues {
		fmt.Println("issue:", issue)
	}
}

// What the daemon repmgrd does, inside a program of one's own.
func ExampleNewMonitor() {
	cfg, err := repmgr.LoadConfig("/etc/repmgr.conf")
	if err != nil {
		log.Fatal(err)
	}
	m, err := repmgr.NewMonitor(cfg)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	if err := m.Run(ctx); err != nil { // nil when ctx has ended
		log.Fatal(err)
	}
}

// A Monitor runs in a goroutine of its own; Status may be asked at any time.
func ExampleMonitor_Run() {
	m, err := repmgr.NewMonitor(cfg)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()

	st := m.Status()
	fmt.Println(st.Phase, st.Reason)
	if st.Lag != nil {
		fmt.Println("behind by", st.Lag.ReceivedBytes+st.Lag.AppliedBytes, "bytes")
	}

	stop()
	if err := <-done; err != nil { // all that it started has ended
		log.Fatal(err)
	}
}

// With failover=automatic the same Monitor votes, elects, fences its node and
// brings it back. It must run on each node's machine, as the user of its server.
func ExampleNewMonitor_failover() {
	cfg := cfg // a copy
	cfg.Failover = repmgr.FailoverAutomatic
	cfg.SynchronousMode = repmgr.SynchronousQuorum // no acknowledged commit is lost
	cfg.DataDirectory = "/srv/pg"
	cfg.Notifiers = []repmgr.Notifier{repmgr.NotifierFunc(func(_ context.Context, e repmgr.Event) error {
		switch e.Type {
		case repmgr.EventFailoverPromote:
			log.Printf("writes go to %s now, not to %s", e.Node, e.Peer)
		case repmgr.EventFailoverRefused:
			log.Printf("the primary is lost, and a person has to look: %s", e.Details)
		case repmgr.EventFence:
			log.Printf("%s was stopped, so that there is no second primary: %s", e.Node, e.Details)
		}
		return nil
	})}
	m, err := repmgr.NewMonitor(cfg)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	if err := m.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// What "repmgr cluster failover --dry-run" does: everybody is asked, nobody for a
// pledge. While the primary lives there is nothing to elect: [Cluster.Explain] says
// who would win.
func ExampleCluster_Failover() {
	res, err := cluster.Failover(ctx, repmgr.FailoverOptions{DryRun: true})
	var refused *repmgr.RefusalError
	switch {
	case errors.Is(err, repmgr.ErrNoQuorum):
		log.Fatal("not enough nodes answer: ", err, " ", repmgr.Hint(err))
	case errors.As(err, &refused):
		fmt.Println("no:", refused.Refusal, "-", refused.Health)
		return
	case err != nil:
		log.Fatal(err)
	}
	if res.Winner != nil {
		fmt.Println(res.Winner.Name, "would win, because the", res.Health)
	}
}

// A Notifier is told of everything that happens, by type.
func ExampleNotifier() {
	cfg := cfg // a copy
	cfg.Notifiers = []repmgr.Notifier{
		repmgr.NotifierFunc(func(_ context.Context, e repmgr.Event) error {
			switch e.Type {
			case repmgr.EventStandbyPromote:
				log.Printf("writes go to %s now, not to %s", e.Node, e.Peer)
			case repmgr.EventUpstreamDisconnect:
				log.Printf("%s does not see its primary: %s", e.Node, e.Details)
			}
			return nil
		}),
		repmgr.WebhookNotifier{URL: "https://pager.example/hook", Types: []repmgr.EventType{repmgr.EventStandbyFailure}},
	}
	if _, err := repmgr.NewMonitor(cfg); err != nil {
		log.Fatal(err)
	}
}

// A trace of each failover and switchover, by the Monitor that held the election: span stands for the tracer of the
// service, such as that of OpenTelemetry.
func ExampleEvent_failover() {
	span := func(name string, from, to time.Time, attributes ...string) { log.Print(name, from, to, attributes) }
	cfg := cfg // a copy
	cfg.Notifiers = []repmgr.Notifier{repmgr.NotifierFunc(func(_ context.Context, e repmgr.Event) error {
		if f := e.Failover; f != nil {
			from := f.StartedAt
			for _, s := range f.Steps {
				to := f.StartedAt.Add(s.After)
				span(s.Step, from, to, "evidence", s.Evidence)
				from = to
			}
			span(string(e.Type), f.StartedAt, from, "former", f.Former, "primary", f.Primary, "reason", string(f.Reason))
		}
		return nil
	})}
	if _, err := repmgr.NewMonitor(cfg); err != nil {
		log.Fatal(err)
	}
}

// pgBasebackup is a Cloner that lets PostgreSQL's own program do the copying, of
// a source without tablespaces.
type pgBasebackup struct{}

func (pgBasebackup) Copy(ctx context.Context, job repmgr.CopyJob) error {
	params, err := repmgr.ParseConninfo(job.Source)
	if err != nil {
		return err
	}
	password := params["password"]
	delete(params, "password") // the list of processes is for everybody to read
	cmd := exec.CommandContext(ctx, "pg_basebackup", "-w", "-X", "stream", "-l", job.Label, "-D", job.Dir, "-d", repmgr.FormatConninfo(params))
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	job.Progress(repmgr.CopyProgress{Phase: "pg_basebackup"})
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run pg_basebackup: %w: %s", err, out)
	}
	return nil
}

// A Cloner of one's own does only the copying: the checks before it, the
// standby's settings after it, and clearing up stay with Clone.
func ExampleCloner() {
	_, err := cluster.Clone(ctx, repmgr.CloneOptions{
		Source: "host=node1 user=repmgr dbname=repmgr",
		Dir:    "/srv/pg",
		Cloner: pgBasebackup{},
	})
	if err != nil {
		log.Fatal(err)
	}
}
