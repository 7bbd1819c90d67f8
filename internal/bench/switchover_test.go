package bench

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

const (
	switchingOver  = "7. A switchover round a ring of three, under a client that commits every 5 ms"
	ourSwitchovers = 50
	itsSwitchovers = 10 // it takes seconds for each
)

// handed is what each switchover took, in ms.
type handed struct{ outage, command stat }

func TestSwitchovers(t *testing.T) {
	wanted(t)
	probe := pgtest.Start(t, pgtest.Options{})
	measured := map[string]handed{}
	kinds := []suite{ours(t)}
	if p := peer(probe); !p.missing() {
		kinds = append(kinds, p)
	}
	for _, s := range kinds {
		t.Run(s.name, func(t *testing.T) { measured[s.name] = s.switchOver(t) })
	}
	if t.Failed() {
		return
	}
	our, theirs := measured["ours"], measured[peerName]
	longest := func(s stat) stat {
		if !s.known() {
			return s
		}
		return stat{[]float64{slices.Max(s.Samples)}}
	}
	add := func(what string, our, theirs stat, bound limit) {
		results.add(figure{Section: switchingOver, What: what, Unit: "ms", Peer: peerName, Ours: our, Theirs: theirs, Limit: bound})
	}
	add(fmt.Sprintf("without an acknowledged commit, %d of ours, %d of its", ourSwitchovers, itsSwitchovers), our.outage, theirs.outage, limit{Value: 500})
	add("the longest of them", longest(our.outage), longest(theirs.outage), limit{Value: 1500})
	add("the command, from its start to its end", our.command, theirs.command, limit{})
}

// switchOver hands over from node to node, and wants every acknowledged row on the new primary.
func (s suite) switchOver(t *testing.T) (m handed) {
	settings := map[string]string{}
	maps.Copy(settings, s.settings)
	count, extra := ourSwitchovers, []string{"failover=automatic", "synchronous_mode=quorum"}
	if s.name == peerName { // without its daemons, which a switchover pauses
		sshd := pgtest.StartSSHD(t)
		count, extra = itsSwitchovers, []string{fmt.Sprintf("ssh_options='%s'", strings.Join(sshd.Options, " "))}
	}
	commands := func(n *pgtest.Server) []string {
		if s.name != peerName {
			return extra
		}
		ctl := fmt.Sprintf("%s -w -D %s -l %s", filepath.Join(n.BinDir, "pg_ctl"), n.Dir, filepath.Join(t.TempDir(), "log"))
		return append(slices.Clone(extra), fmt.Sprintf("service_start_command='%s start'", ctl), fmt.Sprintf("service_stop_command='%s -m fast stop'", ctl))
	}
	nodes := []*node{{suite: s, server: start(t, pgtest.Options{Name: "node1", Settings: settings})}}
	nodes[0].conf = s.register(t, nodes[0].server, commands(nodes[0].server)...)
	for id := 2; id <= 3; id++ {
		standby := pgtest.NewStandby(t, nodes[0].server, pgtest.Options{Name: fmt.Sprintf("node%d", id)})
		n := &node{suite: s, server: standby, conf: s.conf(t, id, standby, commands(standby)...)}
		s.must(t, s.repmgr, "-f", n.conf, "standby", "register")
		nodes = append(nodes, n)
	}
	if s.name != peerName {
		for _, n := range nodes {
			s.daemon(t, n.conf)
		}
		pass(t, 5*time.Second, func() {})
	}
	var conninfos []string
	for _, n := range nodes {
		conninfos = append(conninfos, n.server.Conninfo())
	}
	for round := range count {
		to := nodes[(round+1)%len(nodes)]
		w := pgtest.StartWriter(t, pgtest.WriterOptions{Conninfos: conninfos, Table: fmt.Sprintf("written_%d", round)})
		w.WaitForMore(t, 50)
		options := []string{"-f", to.conf, "standby", "switchover"}
		if s.name == peerName {
			options = append(options, "--siblings-follow")
		}
		r := measure(t, s.repmgr, options...)
		require.Zero(t, r.code, r.out)
		w.WaitForMore(t, 50)
		w.Stop()
		w.Verify(t, to.server.Conninfo())
		m.outage.Samples = append(m.outage.Samples, milliseconds(w.LongestGap().Duration()))
		m.command.Samples = append(m.command.Samples, milliseconds(r.wall))
	}
	fmt.Fprintf(os.Stderr, "          %s: outage %s ms, command %s ms\n", s.name, m.outage, m.command)
	return m
}
