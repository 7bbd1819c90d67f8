package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/internal/wait"
)

// Topology is which nodes there are.
type Topology string

const (
	Three        Topology = "3"
	ThreeWitness Topology = "3+witness"
	Five         Topology = "5"
	TwoWitness   Topology = "2+witness"
	TwoEtcd      Topology = "2+etcd"
)

func (t Topology) data() int {
	return map[Topology]int{Three: 3, ThreeWitness: 3, Five: 5, TwoWitness: 2, TwoEtcd: 2}[t]
}

func (t Topology) witness() bool { return t == ThreeWitness || t == TwoWitness }

// options of a cluster.
type options struct {
	Suite    Suite
	BinDir   string // of PostgreSQL
	Topology Topology
	Quorum   bool   // synchronous_mode=quorum
	Dir      string // for its files
	Ext4     bool   // disks that can be frozen
	Plain    bool   // no namespaces: all on this machine, told apart by port
	Screened bool   // servers are screened before they are started
	Log      func(format string, args ...any)
}

// cluster is a set of machines with servers and daemons, and the network
// between them. Its methods are called by one goroutine.
type cluster struct {
	o         options
	user      *syscall.Credential
	env       []string
	net       *network // nil when plain
	nodes     []*node  // data nodes, then the witness
	client    *machine // where the main client lives
	spare     *node    // where a copy of a node can be started; nil when plain. It is no node of the cluster.
	confLines []string
	etcd      *etcdServer // of 2+etcd

	ctx    context.Context // ends with the cluster
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

const subnet = "10.77.0."

// newCluster makes the machines and their network, with nothing on them.
func newCluster(o options) (c *cluster, err error) {
	c = &cluster{o: o, env: []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TZ=UTC"}}
	if c.user, err = postgresUser(); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	count := o.Topology.data()
	if o.Topology.witness() {
		count++
	}
	if !o.Plain {
		if c.net, err = newNetwork(); err != nil {
			return nil, err
		}
	}
	port := plainPort + 10*(os.Getpid()%100)
	for id := 1; id <= count; id++ {
		n := &node{id: id, witness: id > o.Topology.data(), c: c, port: 5432}
		n.dir = filepath.Join(o.Dir, n.name())
		if n.m, err = c.machine(n.name(), id); err != nil {
			return nil, err
		}
		if o.Plain {
			if port, err = freePort(port + 1); err != nil {
				return nil, err
			}
			n.port = port
		}
		c.nodes = append(c.nodes, n)
	}
	if c.client, err = c.machine("client", 100); err != nil {
		return nil, err
	}
	if !o.Plain && !o.Suite.Peer {
		c.spare = &node{id: spareID, c: c, port: 5432, dir: filepath.Join(o.Dir, "spare")}
		if c.spare.m, err = c.machine("spare", spareID); err != nil {
			return nil, err
		}
	}
	c.confLines = append(c.confLines, c.modeLines()...)
	if o.Topology == TwoEtcd {
		c.etcd, err = newEtcd(c)
	}
	return c, err
}

const spareID = 80

// plainPort is where ports of plain clusters begin.
const plainPort = 27400

// freePort is the first from there on that nobody listens on, at any address.
func freePort(from int) (int, error) {
	for port := from; port < from+1000; port++ {
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port from %d on: 1,000 are taken", from)
}

func (c *cluster) machine(name string, host int) (*machine, error) {
	if c.net == nil {
		return &machine{name: name, ip: "127.0.0.1", fd: -1}, nil
	}
	return c.net.plug(name, fmt.Sprintf("%s%d", subnet, host))
}

func (c *cluster) modeLines() []string {
	switch {
	case c.o.Suite.Peer:
		return nil
	case c.o.Quorum:
		return []string{"synchronous_mode=quorum"}
	}
	return []string{"synchronous_mode=off"}
}

// machines are the nodes, and the spare one.
func (c *cluster) machines() []*node {
	if c.spare == nil {
		return c.nodes
	}
	return append(slices.Clone(c.nodes), c.spare)
}

func (c *cluster) dataNodes() []*node { return c.nodes[:c.o.Topology.data()] }

func (c *cluster) names() (names []string) {
	for _, n := range c.nodes {
		names = append(names, n.name())
	}
	return names
}

// close ends everything.
func (c *cluster) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_ = c.halt(ctx)
	c.cancel()
	c.wg.Wait()
	for _, n := range c.machines() {
		_ = n.clear()
		n.m.close()
	}
	c.client.close()
}

// halt cuts the power of all machines and mends the network.
func (c *cluster) halt(ctx context.Context) error {
	all := c.machines()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, n := range all {
		n.thaw()
		wg.Go(func() { errs[i] = n.power(ctx) })
	}
	wg.Wait()
	if c.etcd != nil {
		c.etcd.kill()
	}
	if c.net != nil {
		for _, n := range c.nodes {
			c.net.calm(n.name())
		}
		errs = append(errs, c.net.mend())
	}
	return errors.Join(errs...)
}

// build makes the cluster from nothing, as a DBA would: initdb, register, clone,
// register, start the daemons. It returns when all is well.
func (c *cluster) build(ctx context.Context) error {
	if err := c.halt(ctx); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := n.prepare(); err != nil {
			return fmt.Errorf("prepare %s: %w", n.name(), err)
		}
	}
	if c.etcd != nil {
		if err := c.etcd.start(ctx); err != nil {
			return err
		}
	}
	first := c.nodes[0]
	if err := c.copyTemplate(ctx, "data", first); err != nil {
		return err
	}
	if err := first.moveWAL(ctx); err != nil {
		return err
	}
	if err := first.startServer(ctx); err != nil {
		return err
	}
	if err := first.repmgr(ctx, "primary", "register"); err != nil {
		return err
	}
	if err := c.each(c.nodes[1:], func(n *node) error { return c.join(ctx, n) }); err != nil {
		return err
	}
	if err := c.each(c.nodes, func(n *node) error { return n.startDaemon() }); err != nil {
		return err
	}
	return waitFor(ctx, 30*time.Second, "the new cluster to be healthy", func(ctx context.Context) error {
		_, err := c.healthy(ctx)
		return err
	})
}

// join makes a standby or the witness.
func (c *cluster) join(ctx context.Context, n *node) error {
	first := c.nodes[0]
	at := []string{"-h", first.m.ip, "-p", fmt.Sprint(first.port), "-U", "repmgr", "-d", "repmgr"}
	if n.witness {
		if err := c.copyTemplate(ctx, "witness", n); err != nil {
			return err
		}
		if err := n.startServer(ctx); err != nil {
			return err
		}
		return n.repmgr(ctx, append(at, "witness", "register")...)
	}
	if err := n.repmgr(ctx, append(at, "standby", "clone", "--fast-checkpoint")...); err != nil {
		return err
	}
	if err := n.moveWAL(ctx); err != nil {
		return err
	}
	if err := n.startServer(ctx); err != nil {
		return err
	}
	if c.o.Suite.Peer { // it refuses a standby that is still catching up
		err := waitFor(ctx, 20*time.Second, n.name()+" to stream", func(ctx context.Context) error {
			if v := n.view(ctx); !v.Streams {
				return errors.Join(errors.New("it does not"), v.Err)
			}
			return wait.Pause(ctx, moment)
		})
		if err != nil {
			return err
		}
	}
	return n.repmgr(ctx, "standby", "register")
}

// each calls fn for all nodes at once.
func (c *cluster) each(nodes []*node, fn func(*node) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = fn(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// copyTemplate gives the node a new data directory. What initdb makes is made once a run.
func (c *cluster) copyTemplate(ctx context.Context, name string, n *node) error {
	template := filepath.Join(c.o.Dir, "template-"+name)
	if _, err := os.Stat(template); err != nil {
		if err := c.makeTemplate(ctx, name, template, n); err != nil {
			return fmt.Errorf("make template %s: %w", name, err)
		}
	}
	return n.run(ctx, "cp", "-a", template, n.data())
}

const templateSQL = `CREATE ROLE repmgr SUPERUSER LOGIN; CREATE ROLE app LOGIN; CREATE DATABASE repmgr OWNER repmgr;`

// tableSQL also makes the commits of an asker last for a moment, so that a fault finds some without an answer.
const tableSQL = `CREATE TABLE chaos (client int, id bigint, PRIMARY KEY (client, id)); GRANT ALL ON chaos TO app; ` +
	`CREATE FUNCTION chaos_pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(random() * 0.05);RETURN NULL;END'; ` +
	`CREATE CONSTRAINT TRIGGER chaos_pause AFTER INSERT ON chaos DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.client >= 90) EXECUTE FUNCTION chaos_pause();`

func (c *cluster) makeTemplate(ctx context.Context, name, template string, n *node) error {
	err := n.run(ctx, filepath.Join(c.o.BinDir, "initdb"), "-D", n.data(), "--no-sync", "--data-checksums", "--auth=trust",
		"--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8")
	if err != nil {
		return err
	}
	hba := "local all all trust\nhost all all 0.0.0.0/0 trust\nlocal replication all trust\nhost replication all 0.0.0.0/0 trust\n"
	err = errors.Join(
		appendTo(filepath.Join(n.data(), "postgresql.conf"), c.serverConf()),
		os.WriteFile(filepath.Join(n.data(), "pg_hba.conf"), []byte(hba), 0o600),
		n.launchServer(ctx))
	if err != nil {
		return err
	}
	steps := []struct{ db, sql string }{{"postgres", templateSQL}}
	if name == "data" {
		steps = append(steps, struct{ db, sql string }{"repmgr", tableSQL})
	}
	for _, s := range steps {
		err := waitFor(ctx, 20*time.Second, "the template", func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", n.dir, n.port, s.db))
			if err != nil {
				return err
			}
			defer conn.Close(ctx)
			for sql := range strings.SplitSeq(s.sql, "; ") {
				if _, err := conn.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := n.stopServer(ctx); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", n.data(), template).CombinedOutput(); err != nil {
		return fmt.Errorf("keep template: %w: %s", err, out)
	}
	return os.RemoveAll(n.data())
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// dsn is what a client connects with: all data nodes, whichever is writable.
func (c *cluster) dsn(nodes []*node) string {
	var hosts, ports []string
	for _, n := range nodes {
		hosts, ports = append(hosts, n.m.ip), append(ports, fmt.Sprint(n.port))
	}
	return fmt.Sprintf("host=%s port=%s user=app dbname=repmgr sslmode=disable target_session_attrs=read-write application_name=client",
		strings.Join(hosts, ","), strings.Join(ports, ","))
}

// state is a healthy cluster.
type state struct {
	Primary  *node
	Timeline int
	Term     int64 // of the newest rule; 0: there is none
}

// standbys returns the data nodes that are not the primary.
func (c *cluster) standbys(primary *node) []*node {
	return slices.DeleteFunc(slices.Clone(c.dataNodes()), func(n *node) bool { return n == primary })
}

// healthy returns nil when there is one primary, every other data node streams
// its timeline and has replayed what it had a moment ago, the witness answers,
// every daemon lives, and the metadata says the same.
func (c *cluster) healthy(ctx context.Context) (state, error) {
	views := make([]nodeView, len(c.nodes))
	look := func() {
		_ = c.each(c.nodes, func(n *node) error {
			views[n.id-1] = n.view(ctx)
			return nil
		})
	}
	look()
	var s state
	for _, n := range c.dataNodes() {
		switch v := views[n.id-1]; {
		case !v.Up:
			return s, v.Err
		case !v.InRecovery && s.Primary != nil:
			return s, fmt.Errorf("two primaries: %s and %s", s.Primary.name(), n.name())
		case !v.InRecovery:
			s.Primary, s.Timeline = n, v.Timeline
		}
	}
	if s.Primary == nil {
		return s, errors.New("no primary")
	}
	had := views[s.Primary.id-1].LSN
	look()
	for _, n := range c.nodes {
		v := views[n.id-1]
		switch {
		case !v.Up:
			return s, v.Err
		case n == s.Primary || n.witness:
		case !v.Streams:
			return s, fmt.Errorf("%s does not stream", n.name())
		case v.Timeline != s.Timeline:
			return s, fmt.Errorf("%s is on timeline %d, the primary on %d", n.name(), v.Timeline, s.Timeline)
		case v.LSN < had:
			return s, fmt.Errorf("%s has replayed to %X, the primary was at %X", n.name(), v.LSN, had)
		}
		n.mu.Lock()
		alive := n.daemon != nil || !n.keep
		n.mu.Unlock()
		if !alive {
			return s, fmt.Errorf("%s: the daemon is down", n.name())
		}
	}
	return s, c.metadata(ctx, &s)
}

// guarded returns nil when every standby's daemon has seen that the primary's would
// stop its server: before, with synchronous_mode=off, nobody takes over.
func (c *cluster) guarded(ctx context.Context, primary *node) error {
	return c.each(c.standbys(primary), func(n *node) error {
		return n.with(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
			var seen bool
			const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT 1 -- repmgrd {%"upstream_guarded":true%')`
			if err = conn.QueryRow(ctx, sql).Scan(&seen); err == nil && !seen {
				err = fmt.Errorf("the daemon of %s has not seen the primary's", n.name())
			}
			return err
		})
	})
}

// metadata checks the rows of the nodes, and reads the term.
func (c *cluster) metadata(ctx context.Context, s *state) error {
	return s.Primary.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, "SELECT node_id, type, active, coalesce(upstream_node_id, 0) FROM repmgr.nodes ORDER BY 1")
		type row struct {
			ID       int
			Type     string
			Active   bool
			Upstream int
		}
		recs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil {
			return err
		}
		if len(recs) != len(c.nodes) {
			return fmt.Errorf("%d nodes are registered, there are %d", len(recs), len(c.nodes))
		}
		for _, r := range recs {
			want := "standby"
			switch {
			case r.ID == s.Primary.id:
				want = "primary"
			case c.nodes[r.ID-1].witness:
				want = "witness"
			}
			if r.Type != want || !r.Active {
				return fmt.Errorf("the metadata has node %d as %s, active=%v; it is %s", r.ID, r.Type, r.Active, want)
			}
		}
		if c.o.Suite.Peer {
			return nil
		}
		var leader, acks int
		err = conn.QueryRow(ctx, "SELECT term, primary_node_id, acks FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1").Scan(&s.Term, &leader, &acks)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err == nil && leader != s.Primary.id {
			return fmt.Errorf("the newest rule names node %d, the primary is %s", leader, s.Primary.name())
		}
		if err == nil && c.o.Quorum && acks == 0 { // nobody may be elected yet
			return errors.New("commits wait for no standby yet")
		}
		return err
	})
}
