package repmgrtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// Options of a cluster. The zero value is what most tests need.
type Options struct {
	Nodes           int                    // servers, 3 or more, because a majority of them elects. Defaults to 3.
	SynchronousMode repmgr.SynchronousMode // Defaults to quorum: commits wait for a standby, and a failover loses none that was acknowledged.
	Settings        map[string]string      // for postgresql.conf of all servers. They run without fsync, with small buffers and wal_keep_size=128MB; these win.
	BinDir          string                 // directory of the server's programs. Defaults to what the package's comment says.
	Configure       func(*repmgr.Config)   // changes the configuration of each node before its Monitor is made, such as its Notifiers or its Logger; nil: nothing
}

const (
	limit           = time.Minute            // of each wait
	monitorInterval = 250 * time.Millisecond // a cluster that lives for seconds is looked at more often than one that lives for years
	hangTimeout     = 2 * time.Second        // until a primary that hangs is killed by its Monitor
	keepWAL         = "128MB"                // a former primary of seconds needs WAL that a checkpoint after the promotion would recycle
)

// Main runs the tests of a package: call it from TestMain. Where root has started them it runs them in a child process, as the OS
// user postgres, with a home and a TMPDIR of its own and without the variables PG*; files of the package that only root may read are copied for
// that. Whatever such a run leaves running is ended; one that passed fails then. Where another user has started them, Main only runs
// them. It does not return.
func Main(m *testing.M) {
	if os.Getuid() == 0 {
		pgtest.Main(m)
	}
	os.Exit(m.Run())
}

// Available says why [Start] could not work here; nil: it can. A test that is to be skipped then asks before it calls Start:
//
//	if err := repmgrtest.Available(); err != nil {
//		t.Skip(err)
//	}
func Available() error { return usable("") }

func usable(binDir string) error {
	for _, name := range []string{"PGTARGETSESSIONATTRS", "PGSERVICE"} {
		if os.Getenv(name) != "" {
			return fmt.Errorf("the environment has %s, which leads connections elsewhere than to the node that is meant: unset it", name)
		}
	}
	return pgtest.Usable(binDir)
}

// Cluster is a primary with standbys, and a Monitor for each, which elect another primary when the old one is lost. Make one with [Start].
type Cluster struct {
	nodes []*Node
	dir   string // of the data directories
	bin   string // where the server's programs are; empty: pgtest finds them
	log   *journal
	after int64 // the term of the primary that was lost last: the next one has a later one
}

// Node is one server of a [Cluster], with its Monitor.
type Node struct {
	Name       string          // node1, node2, ...
	ConnString string          // of this node alone, as the superuser postgres
	Repmgr     *repmgr.Cluster // the cluster as seen from this node: for Explain, Failovers, Status and all else that package repmgr can do

	cluster *Cluster
	config  repmgr.Config
	server  *pgtest.Server
	monitor *repmgr.Monitor
	down    bool // the test has killed it as a standby: nobody brings it back
}

// Start starts a cluster and waits until it is ready for a failover, which takes some seconds. All that it has started ends with the
// test. Where that is not possible the test fails: see [Available].
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	o.Nodes = cmp.Or(o.Nodes, 3)
	if o.Nodes < 3 {
		t.Fatalf("repmgrtest: a cluster of %d nodes can not fail over: a majority of the nodes must be left; use 3 or more", o.Nodes)
	}
	err := usable(o.BinDir)
	if err == nil {
		err = pgtest.Guard()
	}
	c := &Cluster{bin: o.BinDir, log: &journal{}}
	if err == nil {
		c.dir, err = pgtest.TempDir()
	}
	if err != nil {
		t.Fatalf("repmgrtest: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(c.dir); err != nil {
			t.Errorf("repmgrtest: remove the files of the cluster: %v", err)
		}
	})
	for id := 1; id <= o.Nodes; id++ {
		c.add(t, repmgr.NodeID(id), o)
	}
	c.monitor(t)
	c.WaitUntilReady(t)
	return c
}

// add makes, starts and registers a node. The first one is the primary.
func (c *Cluster) add(t testing.TB, id repmgr.NodeID, o Options) {
	t.Helper()
	n := &Node{Name: fmt.Sprintf("node%d", id), cluster: c}
	port, dir := pgtest.Port(t), filepath.Join(c.dir, n.Name)
	n.ConnString = fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable", port)
	settings := map[string]string{"wal_keep_size": keepWAL}
	maps.Copy(settings, o.Settings)
	server := pgtest.Options{Name: n.Name, Dir: dir, Port: port, BinDir: c.bin, Settings: settings, Fresh: true}
	if id == 1 {
		n.server = pgtest.Start(t, server)
		c.bin = n.server.BinDir
	}
	cfg := repmgr.DefaultConfig()
	cfg.NodeID, cfg.NodeName, cfg.ClusterName, cfg.Conninfo, cfg.DataDirectory = id, n.Name, "repmgrtest", n.ConnString, dir
	cfg.Failover, cfg.SynchronousMode = repmgr.FailoverAutomatic, cmp.Or(o.SynchronousMode, repmgr.SynchronousQuorum)
	cfg.MonitorInterval, cfg.HangTimeout, cfg.FailoversPerHour = monitorInterval, hangTimeout, -1
	cfg.Logger = slog.New(slog.NewTextHandler(c.log, nil)).With("monitor", n.Name)
	cfg.PgBindir = c.bin
	if o.Configure != nil {
		o.Configure(&cfg)
	}
	if cfg.Failover != repmgr.FailoverAutomatic {
		t.Fatalf("repmgrtest: Configure sets Failover of %s to %s, so no failover would ever be possible: leave it automatic", n.Name, cfg.Failover)
	}
	n.config = cfg
	var err error
	if n.Repmgr, err = repmgr.New(cfg); err != nil {
		t.Fatalf("repmgrtest: configure %s: %v", n.Name, err)
	}
	if id == 1 {
		_, err = n.Repmgr.RegisterPrimary(t.Context(), repmgr.RegisterOptions{})
	} else {
		_, err = n.Repmgr.Clone(t.Context(), repmgr.CloneOptions{Source: c.nodes[0].ConnString, Dir: dir, FastCheckpoint: true})
		if err == nil {
			n.server = pgtest.StartDir(t, dir, server)
			_, err = n.Repmgr.RegisterStandby(t.Context(), repmgr.RegisterOptions{WaitSync: pgtest.Timeout(limit)})
		}
	}
	if n.server != nil {
		c.nodes = append(c.nodes, n)
	}
	if err != nil {
		c.fail(t, "make %s: %v", n.Name, err)
	}
}

// monitor runs the Monitors of all nodes until the test ends.
func (c *Cluster) monitor(t testing.TB) {
	t.Helper()
	for _, n := range c.nodes {
		var err error
		if n.monitor, err = repmgr.NewMonitor(n.config); err != nil {
			t.Fatalf("repmgrtest: make the Monitor of %s: %v", n.Name, err)
		}
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(t.Context()))
	ended := make(chan error, len(c.nodes))
	for _, n := range c.nodes {
		go func() { ended <- n.monitor.Run(ctx) }()
	}
	t.Cleanup(func() {
		stop(errors.New("the test has ended"))
		late := time.After(pgtest.Timeout(limit))
		for range c.nodes {
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("repmgrtest: a Monitor ended: %v", err)
				}
			case <-late:
				t.Errorf("repmgrtest: a Monitor does not end")
			}
		}
		if t.Failed() {
			t.Logf("log of the Monitors:\n%s", c.log.tail(200))
		}
	})
}

// ConnString names all nodes, in the form of libpq, with the superuser postgres and the database postgres. It is made for package
// pgfollow. A driver that is to find the primary by itself needs " target_session_attrs=read-write" at its end.
func (c *Cluster) ConnString() string {
	var hosts, ports []string
	for _, n := range c.nodes {
		hosts, ports = append(hosts, "127.0.0.1"), append(ports, fmt.Sprint(n.server.Port))
	}
	return fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres sslmode=disable", strings.Join(hosts, ","), strings.Join(ports, ","))
}

// Nodes are all nodes, in the order of their names. The first primary is node1.
func (c *Cluster) Nodes() []*Node { return append([]*Node(nil), c.nodes...) }
