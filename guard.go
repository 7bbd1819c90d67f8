package repmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
)

// guard keeps the local server from being a second primary, whatever else the
// Monitor is busy with:
//
//   - a primary that has had no contact to a majority for fence_timeout is stopped:
//     another one may have been elected (with quorum its commits hang already, and
//     clients that reach it had better go elsewhere);
//   - a primary that hangs is killed after hang_timeout, so that it can not wake
//     up as one later;
//   - what a dead postmaster has left behind is killed: it can still commit.
//
// A stopped primary is started again as a standby of nobody.
func (m *Monitor) guard(ctx context.Context) {
	defer m.beat(nil, true)
	defer m.endMarking()
	defer m.device.disarm()
	var left *time.Duration
	for {
		c := m.settings()
		if m.untilDue(ctx, c, left) != nil {
			return
		}
		m.awake(ctx, c)
		left = m.guardOnce(ctx, c)
		m.beat(left, false)
		m.setLease(left)
		m.feed(c, left)
	}
}

// untilDue lets a pulse pass, or what is left of a lease where that is less.
func (m *Monitor) untilDue(ctx context.Context, c *Cluster, left *time.Duration) error {
	if left != nil && *left < c.pulse() {
		return wait.Pause(ctx, max(*left, c.pulse()/8))
	}
	return m.pulse(ctx)
}

// guardOnce looks and acts once. It returns how long the lease lasts; nil: none is needed.
func (m *Monitor) guardOnce(ctx context.Context, c *Cluster) *time.Duration {
	me, before := m.localPeer(c)
	if before.Known() {
		m.noteBefore(before, false)
	}
	if c.cfg.Failover != FailoverAutomatic || me.Role == election.Witness || me.Role == "" {
		return nil
	}
	if !m.keepDown(ctx, c) {
		return nil
	}
	if me.Answer == election.Refused {
		m.beat(nil, false)
		m.killLeftovers(ctx, c)
		m.startFenced(ctx, c)
		return nil
	}
	m.noteOffice(me)
	if !m.inOffice() || m.isRejoining() {
		return nil
	}
	left, needed := m.lease(time.Now(), c, me)
	if !needed {
		return nil
	}
	if left <= 0 {
		m.beat(nil, false) // the watchdog leaves it to us
		if m.fence(ctx, c, fmt.Sprintf("no contact to a majority of the voters for fence_timeout (%s)", c.cfg.FenceTimeout)+rejecting(me)) {
			return nil
		}
		left = 0 // only a reset of the machine helps now
	}
	return &left
}

// localPeer is the local server as it was last seen. One that has rejected the login
// of this daemon since that began is what was kept of it: where it was the primary,
// and runs as one, it is to be guarded all the same: by that rule, and the one before.
func (m *Monitor) localPeer(c *Cluster) (me election.Peer, before election.Rule) {
	me = voters.PeerOf(m.watch.Peers(), int32(c.cfg.NodeID))
	if me.Answer != election.Rejects || !me.SeenAt.IsZero() || me.Role == election.Witness {
		return me, before
	}
	srv, err := c.localServer(m.dataDirectory())
	if err != nil || !srv.Runs() || srv.IsStandby() {
		return me, before
	}
	if k, err := c.kept(srv.Dir); err == nil && len(k.Rules) > 0 && k.Rules[0].Primary == me.ID {
		me.Rule, me.Running = k.Rules[0], election.Primary
		if len(k.Rules) > 1 {
			before = k.Rules[1]
		}
	}
	return me, before
}

// rejecting names, in the reason of a fence, why the daemon could not look at its own server.
func rejecting(me election.Peer) string {
	if me.Answer == election.Rejects {
		return "; its own server rejects the login of repmgrd"
	}
	return ""
}

// guardHang kills a local primary that leaves new connections without an answer
// for hang_timeout: sessions that are open may still work, but nobody else gets in.
// While failover is paused nobody would take its place.
func (m *Monitor) guardHang(ctx context.Context) {
	var since time.Time
	for {
		c := m.settings()
		rest := c.cfg.HangTimeout / 4 // each costs the server a new process
		if !since.IsZero() {
			rest = c.cfg.HangTimeout / 10
		}
		if m.watch.Rest(ctx, rest, nil) != nil {
			return
		}
		peers := m.watch.Peers()
		me := voters.PeerOf(peers, int32(c.cfg.NodeID))
		switch now := time.Now(); {
		case c.cfg.Failover != FailoverAutomatic || election.Paused(peers) || me.Running != election.Primary || me.Role == election.Witness || !c.hangs(ctx, m.watch.Voter(me.ID).WithoutTLS()):
			since = time.Time{}
		case since.IsZero():
			since = now
		case now.Sub(since) > c.cfg.HangTimeout:
			m.fence(ctx, c, fmt.Sprintf("new connections got no answer for hang_timeout (%s)", c.cfg.HangTimeout))
			since = time.Time{}
		}
	}
}

// lease is how long the local primary may go on without further contact: by its
// own rule, and by the one before while an election could miss that.
func (m *Monitor) lease(now time.Time, c *Cluster, me election.Peer) (left time.Duration, needed bool) {
	r := me.Rule
	peers := m.watch.Peers()
	if !r.Known() {
		return 0, false
	}
	if r.Primary != me.ID { // promoted, and the row that says so is not written yet
		r.Primary = me.ID
		if me.Chosen {
			r.Term = max(r.Term, me.Term)
		}
	}
	mine := c.candidate()
	for i, p := range peers {
		if p.Candidate == mine { // who is pledged to us elects nobody else by that
			peers[i].Term = min(p.Term, r.Term)
		}
		peers[i].SeenAt, peers[i].Tried, peers[i].Replied = m.sleeps.aged(p.SeenAt), m.sleeps.aged(p.Tried), m.sleeps.aged(m.repliedAt(p.ID))
	}
	left = c.cfg.FenceTimeout
	for _, rule := range []election.Rule{r, m.ruleBefore()} {
		if !rule.Known() || rule.PausePreventsElection(me.ID, peers) { // who is paused elects nobody
			continue
		}
		rule.Primary, rule.Term = r.Primary, r.Term
		start := election.LeaseStart(now, rule, me.ID, peers)
		if start.IsZero() {
			start = m.sleeps.aged(m.inOfficeSince()) // nobody was reached yet: the election that promoted it was the contact
		}
		left, needed = min(left, c.cfg.FenceTimeout-now.Sub(start)), true
	}
	return left, needed
}

// ruleBefore is the rule before the newest, as long as an election could miss the newest.
func (m *Monitor) ruleBefore() election.Rule {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	return m.shared.before
}

// hangs reports whether a new connection to the local server gets no answer. One
// that need not ask for TLS spares the server a second one.
func (c *Cluster) hangs(ctx context.Context, plain bool) bool {
	conninfo := c.cfg.Conninfo
	if params, err := ParseConninfo(conninfo); plain && err == nil {
		params["sslmode"] = "disable"
		conninfo = FormatConninfo(params)
	}
	cfg, err := postgres.ConnConfig(conninfo)
	if err != nil {
		return false
	}
	cfg.AfterConnect = nil // that it lets us in is the answer
	conn, err := postgres.DialConfig(ctx, c.self(), cfg)
	if err != nil {
		var ce *postgres.ConnectError
		return ctx.Err() == nil && errors.As(err, &ce) && ce.Reach == postgres.ReachTimeout
	}
	(&postgres.Server{Conn: conn}).Close()
	return false
}

func (m *Monitor) isElsewhere() bool {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	return m.shared.elsewhere
}

// startFenced starts a server that was fenced and does not run.
func (m *Monitor) startFenced(ctx context.Context, c *Cluster) {
	srv, err := c.localServer(m.dataDirectory())
	if err != nil || srv.Runs() {
		return
	}
	mark := filepath.Join(srv.Dir, postmaster.FencedMark)
	info, err := os.Stat(mark)
	if err != nil || m.isRejoining() {
		return
	}
	if err = srv.Detach(); err == nil {
		err = srv.Start(ctx)
	}
	if err != nil {
		m.log.Warn("the fenced server does not start as a standby yet", "err", err, "hint", Hint(err))
		_ = wait.Pause(ctx, c.cfg.SilenceTimeout)
		return
	}
	if why, _ := os.ReadFile(mark); strings.TrimSpace(string(why)) != m.lastFence() { // its watchdog has done it
		m.noteFence(Event{Type: EventFence, Success: true, At: info.ModTime(), Details: strings.TrimSpace(string(why))})
	}
	_ = os.Remove(mark)
}

// killLeftovers ends the processes that a dead postmaster has left behind: they
// can still commit. A server that is just being started is none of them.
func (m *Monitor) killLeftovers(ctx context.Context, c *Cluster) {
	srv, err := c.localServer(m.dataDirectory())
	if err != nil || srv.Runs() {
		return
	}
	killed, err := srv.KillChildren(ctx)
	if killed > 0 {
		m.log.Warn("the postmaster is dead: processes that it left behind were killed", "processes", killed)
	}
	if err != nil {
		m.log.Warn("the postmaster is dead, and processes that it left behind may still run", "err", err)
	}
}
