package bench

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

const (
	startUp = "1. Start-up of the command line"
	showing = "2. cluster show"
)

// servers starts a server with metadata for each repmgr that is here.
func servers(t *testing.T) map[string]*node {
	t.Helper()
	nodes := map[string]*node{}
	s := start(t, pgtest.Options{Name: "ours"})
	nodes["ours"] = &node{suite: ours(t), server: s}
	if p := peer(s); !p.missing() {
		nodes["peer"] = &node{suite: p, server: start(t, pgtest.Options{Name: "peer"})}
	}
	for _, n := range nodes {
		n.conf = n.register(t, n.server)
	}
	return nodes
}

// node is a server with the repmgr that looks after it.
type node struct {
	suite
	server *pgtest.Server
	conf   string
}

// alternate measures a command of both repmgrs in turn, n times each, so that
// what else the machine does meets both.
func alternate(t *testing.T, n int, nodes map[string]*node, command func(*node) run) (theirs, our stat) {
	t.Helper()
	for range n {
		our.Samples = append(our.Samples, milliseconds(command(nodes["ours"]).wall))
		if p := nodes["peer"]; p != nil {
			theirs.Samples = append(theirs.Samples, milliseconds(command(p).wall))
		}
	}
	return theirs, our
}

func TestStartUp(t *testing.T) {
	wanted(t)
	nodes := servers(t)
	for _, n := range nodes {
		n.server.Exec(t, `DELETE FROM repmgr.nodes`)
	}
	version := func(n *node) run {
		r := measure(t, n.repmgr, "--version")
		require.Zero(t, r.code, r.out)
		return r
	}
	empty := func(n *node) run { return measure(t, n.repmgr, "-f", n.conf, "cluster", "show") }
	for _, c := range []struct {
		what    string
		command func(*node) run
	}{{"repmgr --version", version}, {"repmgr cluster show, no nodes", empty}} {
		theirs, our := alternate(t, 30, nodes, c.command)
		results.add(figure{Section: startUp, What: c.what, Unit: "ms", Peer: peerName, Theirs: theirs, Ours: our, Limit: limit{Value: 30}})
	}
}

// show runs cluster show and checks that it lists n nodes.
func show(t *testing.T, n *node, rows int) run {
	t.Helper()
	r := measure(t, n.repmgr, "-f", n.conf, "cluster", "show")
	got := 0
	for line := range strings.Lines(r.out) {
		if strings.Count(line, "|") > 3 && strings.Contains(line, "node") && !strings.Contains(line, "Connection string") {
			got++
		}
	}
	require.Equal(t, rows, got, r.out)
	return r
}

// silent registers standbys behind a black hole, with ids from first to last.
func silent(t *testing.T, n *node, first, last int) {
	t.Helper()
	host, port := pgtest.Blackhole(t)
	for id := first; id <= last; id++ {
		n.server.Exec(t, `INSERT INTO repmgr.nodes (node_id, upstream_node_id, node_name, type, conninfo, repluser, config_file)
			VALUES ($1, 1, $2, 'standby', $3, 'postgres', '/dev/null')`,
			id, fmt.Sprintf("node%d", id), fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres connect_timeout=2", host, port))
	}
}

func TestClusterShow(t *testing.T) {
	wanted(t)
	nodes := servers(t)
	add := func(what string, n, rows int, bound limit) {
		theirs, our := alternate(t, n, nodes, func(n *node) run { return show(t, n, rows) })
		results.add(figure{Section: showing, What: what, Unit: "ms", Peer: peerName, Theirs: theirs, Ours: our, Limit: bound})
	}
	for _, n := range nodes {
		for id := 2; id <= 3; id++ {
			standby := pgtest.NewStandby(t, n.server, pgtest.Options{Name: fmt.Sprintf("node%d", id)})
			n.must(t, n.repmgr, "-f", n.suite.conf(t, id, standby), "standby", "register")
		}
	}
	add("3 nodes, all well", 15, 3, limit{})
	for _, n := range nodes {
		n.server.Exec(t, `DELETE FROM repmgr.nodes WHERE node_id > 1`)
		silent(t, n, 2, 3)
	}
	// One connect_timeout, and what a start of the program and its output may take.
	add("2 of 3 nodes in a black hole, connect_timeout=2", 3, 3, limit{Value: 2100})
}
