package namesakes

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// suspicion is the observation that another server may stream under a node's name.
type suspicion struct {
	who   string    // the WAL senders
	lsn   wal.LSN   // where the primary wrote when they were first seen
	at    time.Time // when that was
	since time.Time // since when it is certain; zero: it may be a connection that has just broken
}

// proven reports whether one of the senders is certainly not the node. With several senders
// that is so when two of them have acknowledged WAL that was written after they were seen
// together, or when one is at an address that is not the node's: the other one may be the node
// itself, which has reconnected meanwhile. With a single sender, the node itself must also be
// looked at.
func (s suspicion) proven(senders []registry.WALSender, tried time.Time, foreign func(registry.WALSender) bool) bool {
	fresh := 0
	for _, w := range senders {
		if len(senders) > 1 && foreign(w) {
			return true
		}
		if w.FlushedLSN > s.lsn {
			fresh++
		}
	}
	return fresh > 1 || len(senders) == 1 && fresh == 1 && tried.After(s.at)
}

// Nodes is the cluster as the daemon of its primary sees it.
type Nodes struct {
	Self   registry.NodeID
	Quorum bool // commits wait for standbys, which are known by their names
	Rows   []registry.Record
	Status registry.NodeStatus    // of the local server, the primary
	Peers  func() []election.Peer // returns the newest views of the voters
}

// Daemon is told what was found.
type Daemon struct {
	Report func(what string, err error) // reports a problem; a nil error means that it is over
	Tell   func(registry.Event)
}

// Finder looks for namesakes repeatedly. One goroutine owns it. The zero value is ready to use.
type Finder struct {
	known     map[registry.NodeID]suspicion
	addresses map[registry.NodeID]string // the address from which each node was seen to stream
}

// Found reports whether another server is known to stream under the name of a node.
func (f *Finder) Found(id registry.NodeID) bool { return !f.known[id].since.IsZero() }

// All are the nodes under whose name another server is known to stream.
func (f *Finder) All() (ids []int32) {
	for id := range f.known {
		if f.Found(id) {
			ids = append(ids, int32(id))
		}
	}
	return ids
}

// Look looks for namesakes once. It also reports names by which standbys can not be told apart.
func (f *Finder) Look(ctx context.Context, d Daemon, n Nodes) {
	known := map[registry.NodeID]suspicion{}
	for _, r := range n.Rows {
		problem := ""
		if n.Quorum && r.Role != registry.RoleWitness {
			problem = registry.NameProblem(r, n.Rows)
		}
		d.Report(fmt.Sprintf("the name of node %d", r.ID), textError(problem))
		if r.Role == registry.RoleWitness || r.ID == n.Self {
			continue
		}
		p, senders := voters.PeerOf(n.Peers(), int32(r.ID)), registry.SendersOf(n.Status, r.Name)
		why := f.suspect(ctx, n.Self, r, p, senders)
		if why == "" {
			d.Report(fmt.Sprintf("the identity of node %d", r.ID), nil)
			continue
		}
		s, who := f.known[r.ID], fmt.Sprint(pidsOf(senders))
		foreign := func(w registry.WALSender) bool {
			return w.ClientAddr != f.addresses[r.ID] && foreignAddress(ctx, r, w.ClientAddr)
		}
		if s.since.IsZero() && s.who != who {
			s = suspicion{who: who, lsn: n.Status.CurrentLSN, at: time.Now()}
		}
		switch {
		case !s.since.IsZero():
		case s.proven(senders, p.Tried, foreign):
			s.since = time.Now()
			d.Tell(registry.Event{Type: registry.EventDuplicateNode, PeerID: r.ID, Peer: r.Name, Details: why})
		}
		if known[r.ID] = s; !s.since.IsZero() {
			d.Report(fmt.Sprintf("the identity of node %d", r.ID), failure.WithHint(fmt.Errorf("%s", why),
				"With synchronous_mode=quorum no commit waits for %s until the other one is gone: stop it, or take primary_conninfo out of its configuration. use_replication_slots = yes lets only one of them stream.", r.Name))
		}
	}
	f.known = known
}

func textError(text string) error {
	if text == "" {
		return nil
	}
	return fmt.Errorf("%s", text)
}

func pidsOf(senders []registry.WALSender) (pids []int) {
	for _, w := range senders {
		pids = append(pids, w.PID)
	}
	slices.Sort(pids)
	return pids
}

// suspect is the reason why what streams under the name of a node may not be that node; empty:
// there is none. What the node itself says counts most, because an address may be translated on
// the way.
func (f *Finder) suspect(ctx context.Context, self registry.NodeID, r registry.Record, p election.Peer, senders []registry.WALSender) string {
	from := registry.AddressesOf(senders)
	switch answers := p.Answer == election.Answers; {
	case len(senders) == 0:
		return ""
	case len(senders) > 1:
		return fmt.Sprintf("%d servers stream under the name of %s, from %s: one of them is not that node", len(senders), r, from)
	case answers && !p.Streams:
		return fmt.Sprintf("a server at %s streams under the name of %s, which says that it receives from nobody", from, r)
	case answers && p.Receives != 0 && p.Receives != int32(self):
		return fmt.Sprintf("a server at %s streams under the name of %s, which says that it receives from node ID %d", from, r, p.Receives)
	case answers:
		if f.addresses == nil {
			f.addresses = map[registry.NodeID]string{}
		}
		f.addresses[r.ID] = senders[0].ClientAddr // this is the node itself, whatever its address looks like
		return ""
	case p.Answer != "" && senders[0].ClientAddr != f.addresses[r.ID] && foreignAddress(ctx, r, senders[0].ClientAddr):
		return fmt.Sprintf("a server at %s streams under the name of %s, which does not answer at its own address, %s", from, r, postgres.Address(r.Conninfo))
	default:
		return ""
	}
}

// foreignAddress reports whether an address is certainly none of those that a node's conninfo
// leads to. A socket, an address of this machine and a name that does not resolve prove
// nothing.
func foreignAddress(ctx context.Context, r registry.Record, addr string) bool {
	from, err := netip.ParseAddr(addr)
	params, errInfo := conninfo.Parse(r.Conninfo)
	if err != nil || errInfo != nil || from.IsLoopback() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	for host := range strings.SplitSeq(cmp.Or(params["hostaddr"], params["host"]), ",") {
		if host == "" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
			return false
		}
		all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return false
		}
		for _, a := range all {
			if a.Unmap() == from.Unmap() || a.IsLoopback() {
				return false
			}
		}
	}
	return true
}
