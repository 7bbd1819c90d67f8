package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/internal/namesakes"
	"github.com/pgrepmgr/repmgr/internal/rejoin"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// tender looks after the rule of the local primary: whose votes count, and which
// standbys a commit waits for. It is owned by the goroutine of Run.
type tender struct {
	rule    election.Rule       // the newest
	ruledAt time.Time           // since when it is known
	mark    wal.LSN             // where the primary wrote at the last look
	sound   map[int32]time.Time // when a standby was last seen to have what was written by then
	term    int64               // the one that sound is of

	proven string    // the synchronous_standby_names that is in force and known to make commits wait
	begun  bool      // it was looked at
	failed error     // why the last one could not be put in force
	again  time.Time // when to try that again

	mended wal.Timeline // the timeline whose past the server can send

	namesakes namesakes.Finder // of the nodes that stream from here
}

// tend does one step of what [election.Policy.Reconcile] asks for.
func (m *Monitor) tend(ctx context.Context) error {
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	rules, err := m.local.Rules(ctx)
	if err != nil {
		return err
	}
	self := int32(m.cluster.cfg.NodeID)
	registered := m.registered()
	if len(rules) == 0 || rules[0].Primary != self {
		if len(rules) > 0 {
			return nil // promoted, and not in office yet: see the election
		}
		first := election.Rule{Term: 1 + highestTerm(m.watch.Peers()), Seq: 1, Primary: self, Voters: registered}
		if first.Line, err = m.local.RuleLine(ctx); err == nil {
			err = addLine(ctx, m.local.Server)
		}
		if err != nil {
			return err
		}
		return m.commitRule(ctx, election.Rule{}, first)
	}
	set, err := m.syncInForce(ctx, rules)
	if err != nil {
		return err
	}
	m.tender.namesakes.Look(ctx, namesakes.Daemon{Report: m.report, Tell: m.tell}, namesakes.Nodes{
		Self: m.cluster.cfg.NodeID, Quorum: m.cluster.cfg.SynchronousMode == SynchronousQuorum,
		Rows: m.recs, Status: m.sample.local, Peers: m.watch.Peers,
	})
	membership := election.Membership{Rule: rules[0], Set: set, Registered: registered, Healthy: m.healthy(rules[0]), Duplicated: m.tender.namesakes.All()}
	var before election.Rule
	if len(rules) > 1 {
		before = rules[1]
	}
	holders := m.holders(rules[0])
	if membership.Held = election.Held(rules[0], before, holders); !membership.Held {
		m.watch.Refresh(ctx, m.cluster.pulse()) // what was seen of them may be older than the rule
		holders = m.holders(rules[0])
		membership.Held = election.Held(rules[0], before, holders)
	}
	m.guard.NoteBefore(before, membership.Held)
	m.pushRule(ctx, rules[0], before, holders)
	if c := m.cluster; c.cfg.Arbiter != nil {
		m.report("announcing the primary to "+c.cfg.Arbiter.Name(), c.cfg.Arbiter.Announce(ctx, rules[0], m.self, 3*c.cfg.MonitorInterval+c.cfg.SilenceTimeout))
	}
	if !rules[0].Line.Known() && membership.Held {
		switch line, err := m.local.RuleLine(ctx); {
		case err != nil:
			return err
		case line.Known(): // a former version, or an operator, has written it
			next := rules[0]
			next.Seq, next.Line = next.Seq+1, line
			if err := addLine(ctx, m.local.Server); err != nil {
				return err
			}
			return m.commitRule(ctx, rules[0], next)
		}
	}
	switch change := m.policy().Reconcile(membership); {
	case change.Set != nil:
		return m.putSync(ctx, rules[0], set, *change.Set)
	case change.Rule != nil:
		return m.commitRule(ctx, rules[0], *change.Rule)
	case !membership.Held:
		m.log.Debug("the rule is not held yet", "rule", rules[0], "holders", holders)
	}
	return nil
}

// syncInForce reads synchronous_standby_names. With synchronous_mode=off what a
// user has set is none of our business. One under which no commit was seen to wait
// is as good as none.
func (m *Monitor) syncInForce(ctx context.Context, rules []election.Rule) (none election.SyncSetting, err error) {
	quorum, t := m.cluster.cfg.SynchronousMode == SynchronousQuorum, &m.tender
	if !quorum && !rules[0].Quorum && m.sample.local.Settings.SynchronousStandby == "" {
		return none, nil
	}
	s, err := syncrep.Read(ctx, m.local.Server)
	usual := s.Value == t.proven && syncrep.SettingOf(s.Value, m.recs).Equal(rules[0].SyncSetting())
	if err == nil && !usual && (quorum || rules[0].Quorum) { // this session may not have read the newest settings: a new one has them
		s, err = m.freshSyncState(ctx)
	}
	former := m.ofFormerBuild(s, rules[0])
	switch {
	case err != nil:
		return none, err
	case !quorum && s.Foreign() && !former:
		return none, nil
	case s.Foreign() && former:
		err = syncrep.WriteMark(ctx, m.local.Server, s, s.Value)
	}
	set := syncrep.SettingOf(s.Value, m.recs)
	if (!t.begun || rules[0].Seq == 1) && set.Equal(rules[0].SyncSetting()) {
		t.proven = s.Value // whoever wrote the rule, or opened the term, saw a commit wait
	}
	if t.begun = true; s.Value != t.proven {
		t.proven = ""
	}
	if set.NeedsStandbys() && t.proven == "" {
		set.Acks = -1
	}
	return set, err
}

// freshSyncState is what a new session of the local server says: it has the settings
// of the server itself, whatever the sessions that were there before have read.
func (m *Monitor) freshSyncState(ctx context.Context) (syncrep.State, error) {
	n, err := m.cluster.connectLocal(ctx)
	if err != nil {
		return syncrep.State{}, err
	}
	defer n.Close()
	return syncrep.Read(ctx, n)
}

// ofFormerBuild reports whether a value without our mark is the one that the rule
// asks for: a repmgrd that made no marks has written it.
func (m *Monitor) ofFormerBuild(s syncrep.State, r election.Rule) bool {
	return s.Mark == "" && s.Value == m.syncValue(r.SyncSetting())
}

// putSync puts a setting in force. What asks for more is believed only when a
// commit was seen to wait.
func (m *Monitor) putSync(ctx context.Context, r election.Rule, now, s election.SyncSetting) error {
	var err error
	switch t := &m.tender; {
	case s.Acks == 0 && m.cluster.cfg.SynchronousMode != SynchronousQuorum:
		err = syncrep.Clear(ctx, m.local.Server)
	case s.Acks == 0 || now.NeedsStandbys() && s.Acks <= now.Acks:
		err = m.cluster.syncWriter(m.watch).Set(ctx, m.local.Server, s)
	case time.Now().Before(t.again):
		return t.failed
	default:
		err = m.cluster.syncWriter(m.watch).Raise(ctx, m.local.Server, r.SyncSetting(), s)
		if errors.Is(err, syncrep.ErrUnproven) && !errors.Is(t.failed, syncrep.ErrUnproven) {
			m.tell(Event{Type: EventSyncUnproven, Details: err.Error()})
		}
		t.again, t.failed = time.Now().Add(m.cluster.cfg.SilenceTimeout), err
	}
	if err != nil {
		return err
	}
	m.tender.again, m.tender.failed = time.Time{}, nil
	m.tender.proven = m.syncValue(s)
	m.log.Info("synchronous_standby_names changed", "acks", s.Acks, "standbys", s.Standbys)
	m.lookNow()
	return nil
}

func (m *Monitor) syncValue(s election.SyncSetting) string {
	return syncrep.Value(s, func(id int32) string { return m.watch.Record(id).Name })
}

func highestTerm(peers []election.Peer) (term int64) {
	for _, p := range peers {
		term = max(term, p.Term, p.Rule.Term, p.Announced.Term)
	}
	return term
}

// registered are the voters that should be.
func (m *Monitor) registered() (ids []int32) {
	if m.cluster.cfg.Arbiter != nil {
		ids = append(ids, election.Arbiter)
	}
	for _, r := range m.recs {
		ids = append(ids, int32(r.ID))
	}
	slices.Sort(ids)
	return ids
}

// commitRule writes a rule on the local primary.
func (m *Monitor) commitRule(ctx context.Context, before, r election.Rule) error {
	m.guard.NoteBefore(before, false) // until it is known to be held
	if err := m.local.WriteRule(ctx, r, m.cluster.candidate()); err != nil {
		return err
	}
	m.log.Info("rule changed", "term", r.Term, "seq", r.Seq, "voters", r.Voters, "sync_standbys", r.Sync, "acks", r.Acks)
	m.lookNow()
	return nil
}

// holders are the voters that are known to have the rule: their tables show it, or
// they were told of it.
func (m *Monitor) holders(r election.Rule) []int32 {
	ids := []int32{int32(m.cluster.cfg.NodeID)}
	if m.tender.rule.Compare(r) != 0 {
		m.tender.rule, m.tender.ruledAt = r, time.Now()
	}
	for _, p := range m.watch.Peers() {
		if p.ID != ids[0] && p.Holds(r) {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// healthy are the standbys that stream, keep up, answer and may be promoted: one
// that lets nobody ask gives no pledge. One that fell silent a moment ago still is:
// short outages do not change the rule. So is one that the rule names while nobody has
// looked for that long: at the begin of a term, or of this daemon. One under whose name another server
// streams is not, from the moment in which that is known.
func (m *Monitor) healthy(rule election.Rule) (ids []int32) {
	now := time.Now()
	t := &m.tender
	if t.term != rule.Term {
		t.sound, t.term = map[int32]time.Time{}, rule.Term
		for _, id := range rule.Sync {
			t.sound[id] = now
		}
	}
	for _, r := range m.recs {
		p, id := voters.PeerOf(m.watch.Peers(), int32(r.ID)), int32(r.ID)
		keepsUp := slices.ContainsFunc(registry.SendersOf(m.sample.local, r.Name), func(w WALSender) bool { return w.FlushedLSN >= t.mark })
		switch {
		case t.namesakes.Found(r.ID) || registry.NameProblem(r, m.recs) != "":
			delete(t.sound, id)
		case keepsUp && p.Answer == election.Answers && p.Streams:
			t.sound[id] = now
		}
	}
	t.mark = m.sample.local.CurrentLSN
	for _, r := range m.recs {
		p := voters.PeerOf(m.watch.Peers(), int32(r.ID))
		at, ok := t.sound[int32(r.ID)]
		if ok && r.Role == RoleStandby && r.Priority > 0 && !p.Delayed && p.Halt == "" && now.Sub(at) < 2*m.cluster.cfg.SilenceTimeout {
			ids = append(ids, int32(r.ID))
		}
	}
	return ids
}

// pushRule gives the rule to the voters that do not stream, witnesses and the
// arbiter, and tells it to standbys that do not show it. How much an arbiter's vote weighs depends on the voters, so of other
// voters it hears only when the nodes hold them.
func (m *Monitor) pushRule(ctx context.Context, r, before election.Rule, holders []int32) {
	for _, p := range m.watch.Peers() {
		if p.ID == election.Arbiter && before.Known() && !slices.Equal(r.Voters, before.Voters) && !election.Held(r, before, holders) {
			continue
		}
		if p.Answer != election.Answers || p.NewestRule().Compare(r) >= 0 {
			continue
		}
		var err error
		switch {
		case p.ID == election.Arbiter:
			if err = m.cluster.cfg.Arbiter.Record(ctx, r, m.recs); errors.Is(err, ballot.ErrTerm) {
				err = nil // an election goes on: the ballots tell
			}
		case p.Role == election.Witness:
			err = m.watch.Voter(p.ID).Run(ctx, func(n *registry.Server) error { return registry.CopyMetadata(ctx, m.local.Server, n) })
		case p.Running == election.Standby && time.Since(m.tender.ruledAt) > m.cluster.pulse(): // it is slow to replay it, or can not stream
			err = m.watch.Voter(p.ID).RunAndLook(ctx, func(n *registry.Server) error { return tellRule(ctx, n, r) })
		default:
			continue
		}
		m.report(fmt.Sprintf("telling node %d the rule", p.ID), err)
	}
}

// tendStandby keeps a standby ready for its promotion.
func (m *Monitor) tendStandby(ctx context.Context) error {
	m.mendSlot(ctx)
	now := m.sample.local.Settings.SynchronousStandby
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	if err := m.tendArchive(ctx); err != nil {
		return err
	}
	switch quorum := voters.NewestRule(m.watch.Peers()).Quorum; {
	case quorum && now == "":
		s, err := syncrep.Read(ctx, m.local.Server)
		if err == nil {
			err = syncrep.WriteMark(ctx, m.local.Server, s, syncrep.AnyStandby)
		}
		if err != nil {
			return err
		}
		return m.local.AlterSystem(ctx, map[string]string{"synchronous_standby_names": syncrep.AnyStandby})
	case !quorum && now != "":
		return syncrep.Clear(ctx, m.local.Server)
	}
	return nil
}

// slotEvery is the time between two attempts to make the slot of a standby that
// streams without the one that its row names.
const slotEvery = 10 * time.Second

// mendSlot gives the local standby the slot that its row names, where it was
// pointed to its upstream without one. Changing the setting makes its receiver
// begin anew, so the slot comes first.
func (m *Monitor) mendSlot(ctx context.Context) {
	s, now := m.sample.local, time.Now()
	switch {
	case m.self.SlotName == "" || s.Settings.PrimarySlotName == m.self.SlotName:
		m.report(troubleSlot, nil)
		return
	case s.Receiver == nil || s.Receiver.Status != "streaming" || now.Sub(m.slotAt) < slotEvery:
		return
	}
	m.slotAt = now
	m.report(troubleSlot, m.makeOwnSlot(ctx))
}

func (m *Monitor) makeOwnSlot(ctx context.Context) error {
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	upstream, ok := registry.ByID(m.recs, m.self.UpstreamID)
	if !ok {
		return nil // the primary's row of it is on its way
	}
	up, err := m.cluster.connectTo(ctx, upstream)
	if err != nil {
		return err
	}
	defer up.Close()
	if status, err := up.Status(ctx); err != nil || registry.Attachment(status, m.self.Name) == "" {
		return err // it streams from another one than its row says
	}
	if _, err := up.CreateSlot(ctx, m.self.SlotName, m.self.Name); err != nil {
		return hint(err, "%s", cmp.Or(Hint(err), slotHint))
	}
	term := voters.NewestRule(m.watch.Peers()).Term
	return m.local.WithBallot(ctx, func(b ballot.Ballot) error {
		if b.Term > term {
			return nil // an election is going on: who wins gives it its slot
		}
		return m.local.AlterSystem(ctx, map[string]string{"primary_slot_name": m.self.SlotName})
	})
}

// tendArchive keeps the archive of a standby that streams out of force: when the
// primary is lost nothing of it is to come from there, and a command that takes
// long would hold the promotion up. One that can not stream gets it back.
func (m *Monitor) tendArchive(ctx context.Context) error {
	switch alone := m.state.DisconnectedAt; {
	case m.sample.local.Receiver != nil && m.sample.local.Receiver.Status == "streaming":
		return ballot.CutArchive(ctx, m.local.Conn)
	case voters.PeerOf(m.watch.Peers(), int32(m.self.ID)).Detached: // it has no upstream: whoever gives it one gives it the archive
	case !alone.IsZero() && time.Since(alone) > 2*m.cluster.cfg.SilenceTimeout && m.state.Health == election.HealthAlive:
		term := voters.NewestRule(m.watch.Peers()).Term
		return ballot.Locked(ctx, m.local.Conn, func(b ballot.Ballot) error {
			if b.Term > term {
				return nil // it has pledged itself since: nothing of the old term is to reach it
			}
			return ballot.GiveArchive(ctx, m.local.Conn)
		})
	}
	return nil
}

// giveArchive leaves the local standby with its archive.
func (m *Monitor) giveArchive(ctx context.Context) {
	if m.state.Role != election.Standby || m.cluster.cfg.NodeID == 0 {
		return
	}
	ctx, cancel := m.lookLimit(context.WithoutCancel(ctx))
	defer cancel()
	n, err := m.cluster.connectLocal(ctx)
	if errors.Is(err, ErrConnect) {
		return // there is no server to give it to
	}
	if err == nil {
		var detached bool // then it was fenced or has voted, and whoever points it to a primary gives it back
		if err = n.Conn.QueryRow(ctx, `SELECT current_setting('primary_conninfo') = ''`).Scan(&detached); err == nil && !detached {
			err = ballot.GiveArchive(ctx, n.Conn)
		}
		n.Close()
	}
	if err != nil {
		m.log.Warn("restore_command is not given back", "err", err, "hint", "Where it is empty: ALTER SYSTEM RESET restore_command; SELECT pg_reload_conf();")
	}
}

// addLine brings the table of the rules of a former version up to date.
func addLine(ctx context.Context, n *registry.Server) error {
	var have bool
	err := n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'repmgr.rules'::regclass AND attname = 'line')`).Scan(&have)
	if err == nil && !have {
		_, err = n.Conn.Exec(ctx, `ALTER TABLE repmgr.rules ADD COLUMN IF NOT EXISTS line jsonb`)
	}
	if err != nil {
		return n.QueryError("add a column to repmgr.rules", err)
	}
	return nil
}

// pulse lets a pulse pass; with failover=manual nothing is that urgent.
func (m *Monitor) pulse(ctx context.Context) error {
	c := m.settings()
	if c.cfg.Failover != FailoverAutomatic {
		return wait.Pause(ctx, c.cfg.MonitorInterval)
	}
	return m.watch.Rest(ctx, c.pulse()-voters.SinceTick(c.pulse()), nil)
}

// mendHistory makes, after each promotion, what standbys need of earlier timelines: see [rejoin.MendHistory].
func (m *Monitor) mendHistory() {
	s := m.sample.local
	if s.InRecovery || s.Timeline == m.tender.mended || m.self.Role == RoleWitness || m.guard.Elsewhere() {
		return
	}
	srv, err := m.cluster.localServer(m.guard.DataDirectory())
	var mended []string
	if err == nil {
		mended, err = rejoin.MendHistory(srv.Dir, s.Timeline)
	}
	if len(mended) > 0 {
		m.log.Info("WAL segments of earlier timelines were made anew, for standbys that have not been there yet", "segments", mended)
	}
	if m.report("mending the WAL of earlier timelines", err); err == nil {
		m.tender.mended = s.Timeline
	}
}

// goneEvery is how often a monitor asks again whether the WAL is gone.
const goneEvery = 2 * time.Second

// watchWAL tells once when this standby needs WAL that its upstream does not have
// any more: nothing else will bring it back than a new copy.
func (m *Monitor) watchWAL(ctx context.Context) {
	s := m.sample.local
	if m.local == nil || m.primary == nil || m.witness || m.self.ID == 0 || registry.NextLSN(s) == 0 || m.action != nil || time.Since(m.goneAt) < goneEvery {
		return
	}
	m.goneAt = time.Now()
	up, of := m.primary.Server, m.primRec
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	if r, ok := registry.ByID(m.recs, m.self.UpstreamID); ok && r.ID != of.ID && s.Receiver == nil {
		if n, err := m.cluster.connectTo(ctx, r); err == nil {
			defer n.Close()
			up, of = n, r
		}
	}
	var err error
	if s.Receiver == nil || up == m.primary.Server && registry.NextLSN(s) < m.sample.primaryLSN {
		if lost := follow.FindLostWAL(ctx, up, of, s); lost != nil {
			probes := []probe{{record: m.primRec, status: NodeStatus{}}}
			err = hint(kind(ErrWALGone, "%s can not go on: %s", m.self, lost), "%s", remedy(*lost, m.self, probes))
		}
	}
	m.report("replication", err)
	if m.trouble.News("replication", errText(err)) && err != nil {
		m.tell(Event{Type: EventWALGone, Details: err.Error() + ". " + Hint(err)})
	}
}
