package repmgr

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// sendersOf are the WAL senders of a server that stream under a name, or one that
// PostgreSQL takes for the same.
func sendersOf(s NodeStatus, name string) (all []WALSender) {
	for _, w := range s.Senders {
		if w.State == "streaming" && strings.EqualFold(w.ApplicationName, name) {
			all = append(all, w)
		}
	}
	return all
}

func addressesOf(senders []WALSender) string {
	var all []string
	for _, w := range senders {
		if from := cmp.Or(w.ClientAddr, "this machine"); !slices.Contains(all, from) {
			all = append(all, from)
		}
	}
	return strings.Join(all, " and ")
}

// namesake is the suspicion that another server streams under a node's name.
type namesake struct {
	who   string    // the WAL senders
	lsn   wal.LSN   // where the primary wrote when they were seen first
	at    time.Time // when that was
	since time.Time // since when it is known; zero: it may be a connection that has just broken
}

// proven reports whether one of the senders is not the node. Of several, that is so
// when two of them have acknowledged what was written after they were seen together,
// or when one is at an address that is not the node's: the other one may be the node
// itself, which was cut off since. One alone needs a look at the node besides.
func (s namesake) proven(senders []WALSender, tried time.Time, foreign func(WALSender) bool) bool {
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

// watchNames finds the nodes under whose name another server streams: what that
// one acknowledges the node may not have. One look proves nothing, because the WAL
// sender of a connection that broke lives on for a while: see [namesake.proven].
func (m *Monitor) watchNames(ctx context.Context) {
	t, status := &m.tender, m.sample.local
	known := map[NodeID]namesake{}
	for _, r := range m.recs {
		problem := ""
		if m.cluster.cfg.SynchronousMode == SynchronousQuorum && r.Role != RoleWitness {
			problem = registry.NameProblem(r, m.recs)
		}
		m.report(fmt.Sprintf("the name of node %d", r.ID), textError(problem))
		if r.Role == RoleWitness || r.ID == m.cluster.cfg.NodeID {
			continue
		}
		p, senders := voters.PeerOf(m.watch.Peers(), int32(r.ID)), sendersOf(status, r.Name)
		why := m.suspect(ctx, r, p, senders)
		if why == "" {
			m.report(fmt.Sprintf("the identity of node %d", r.ID), nil)
			continue
		}
		s, who := t.namesakes[r.ID], fmt.Sprint(pidsOf(senders))
		foreign := func(w WALSender) bool {
			return w.ClientAddr != t.addresses[r.ID] && foreignAddress(ctx, r, w.ClientAddr)
		}
		if s.since.IsZero() && s.who != who {
			s = namesake{who: who, lsn: status.CurrentLSN, at: time.Now()}
		}
		switch {
		case !s.since.IsZero():
		case s.proven(senders, p.Tried, foreign):
			s.since = time.Now()
			m.tell(Event{Type: EventDuplicateNode, PeerID: r.ID, Peer: r.Name, Details: why})
		}
		if known[r.ID] = s; !s.since.IsZero() {
			m.report(fmt.Sprintf("the identity of node %d", r.ID), hint(fmt.Errorf("%s", why),
				"With synchronous_mode=quorum no commit waits for %s until the other one is gone: stop it, or take primary_conninfo out of its configuration. use_replication_slots = yes lets only one of them stream.", r.Name))
		}
	}
	t.namesakes = known
}

func textError(text string) error {
	if text == "" {
		return nil
	}
	return fmt.Errorf("%s", text)
}

func pidsOf(senders []WALSender) (pids []int) {
	for _, w := range senders {
		pids = append(pids, w.PID)
	}
	slices.Sort(pids)
	return pids
}

// suspect says why what streams under the name of a node may not be that node.
// The node's own word counts most: an address may be translated on the way.
func (m *Monitor) suspect(ctx context.Context, r Record, p election.Peer, senders []WALSender) string {
	from := addressesOf(senders)
	switch answers := p.Answer == election.Answers; {
	case len(senders) == 0:
		return ""
	case len(senders) > 1:
		return fmt.Sprintf("%d servers stream under the name of %s, from %s: one of them is not that node", len(senders), r, from)
	case answers && !p.Streams:
		return fmt.Sprintf("a server at %s streams under the name of %s, which says that it receives from nobody", from, r)
	case answers && p.Receives != 0 && p.Receives != int32(m.cluster.cfg.NodeID):
		return fmt.Sprintf("a server at %s streams under the name of %s, which says that it receives from node ID %d", from, r, p.Receives)
	case answers:
		if m.tender.addresses == nil {
			m.tender.addresses = map[NodeID]string{}
		}
		m.tender.addresses[r.ID] = senders[0].ClientAddr // the node itself, wherever it seems to come from
		return ""
	case p.Answer != "" && senders[0].ClientAddr != m.tender.addresses[r.ID] && foreignAddress(ctx, r, senders[0].ClientAddr):
		return fmt.Sprintf("a server at %s streams under the name of %s, which does not answer at its own address, %s", from, r, postgres.Address(r.Conninfo))
	default:
		return ""
	}
}

// foreignAddress reports whether an address is surely none of those that a node's
// conninfo leads to. A socket, an address of this machine and a name that does not
// resolve are no evidence.
func foreignAddress(ctx context.Context, r Record, addr string) bool {
	from, err := netip.ParseAddr(addr)
	params, errInfo := ParseConninfo(r.Conninfo)
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
