package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/syncrep"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Options are what a Leader or a Standby needs of the configuration and of its daemon.
type Options struct {
	Self           registry.NodeID
	Candidate      string // the name under which rules are written: see [voters.Candidate]
	Quorum         bool   // synchronous_mode=quorum
	SilenceTimeout time.Duration
	AnnounceFor    time.Duration // how long an arbiter publishes the primary after each announcement

	Watch   *voters.Watch
	Arbiter Arbiter // nil: there is none
	Sync    syncrep.Writer
	Log     *slog.Logger

	// ConnectTo opens a connection to another node, within ConnectTimeout.
	ConnectTo      func(context.Context, registry.Record) (*registry.Server, error)
	ConnectTimeout time.Duration
	// Connect opens a new session of the local server.
	Connect func(context.Context) (*registry.Server, error)
	// Report is called after each attempt at something that may fail; err is nil when it worked.
	Report func(what string, err error)
	// Unproven is called once when commits do not wait although they should.
	Unproven func(err error)
	// Before is called with the rule before the newest, and with whether the newest is held.
	// While it is not held, an election may still start from the rule before.
	Before func(r election.Rule, held bool)
	// Wake makes the daemon take its next step at once.
	Wake func()
}

// Arbiter is a voter that is no PostgreSQL server.
type Arbiter interface {
	Name() string
	Record(ctx context.Context, r election.Rule, nodes []registry.Record) error
	Announce(ctx context.Context, r election.Rule, primary registry.Record, ttl time.Duration) error
}

// Look is what the daemon has seen of its node in this turn.
type Look struct {
	Server  *registry.Server // the local one
	Status  registry.NodeStatus
	Records []registry.Record // the rows of all nodes
	Self    registry.Record   // that of this node
	Policy  election.Policy
	// DuplicateNames finds the nodes under whose name another server streams.
	DuplicateNames func(context.Context) []int32
}

// Leader adjusts the rule of a primary and its synchronous_standby_names to the standbys that
// are there: whose votes count, and which standbys a commit waits for. It is not safe for
// concurrent use.
type Leader struct {
	Options
	look Look

	rule        election.Rule       // the newest rule that holders has seen
	ruleSeenAt  time.Time           // since when that rule is known
	previousLSN wal.LSN             // where the primary wrote at the previous look
	healthyAt   map[int32]time.Time // when each standby was last seen to have the WAL up to previousLSN
	healthyTerm int64               // the term to which healthyAt belongs

	provenValue string    // the synchronous_standby_names that is in force and was seen to make commits wait
	inspected   bool      // the setting was read at least once
	lastErr     error     // why the last setting could not be put in force
	retryAt     time.Time // when that is tried again

	upgraded  bool      // repmgr.rules has all its columns
	toldTerm  int64     // clients were told of the timelines up to this term
	toldAt    time.Time // when that was last looked after
	untold    bool      // clients could not be told of the timelines
	leftovers leftovers
}

// Step does at most one of the changes that [election.Policy.Reconcile] asks for. The next call
// continues from what it finds.
func (l *Leader) Step(ctx context.Context, look Look) error {
	l.look = look
	l.leftovers.step(ctx, l.Options, look)
	rules, err := l.look.Server.Rules(ctx)
	if err != nil {
		return err
	}
	self := int32(l.Self)
	registered := Registered(l.look.Records, l.Arbiter != nil)
	if len(rules) == 0 || rules[0].Primary != self {
		if len(rules) > 0 {
			return nil // promoted, but the election has not opened its term yet
		}
		first := election.Rule{Term: 1 + voters.HighestTerm(l.Watch.Peers()), Seq: 1, Primary: self, Voters: registered}
		if first.Line, err = l.look.Server.RuleLine(ctx); err == nil {
			err = addColumns(ctx, l.look.Server)
		}
		if err != nil {
			return err
		}
		return l.commitRule(ctx, election.Rule{}, first)
	}
	set, err := l.syncInForce(ctx, rules)
	if err != nil {
		return err
	}
	doubled := l.look.DuplicateNames(ctx)
	membership := election.Membership{Rule: rules[0], Set: set, Registered: registered, Healthy: l.healthy(rules[0], doubled), Duplicated: doubled}
	var before election.Rule
	if len(rules) > 1 {
		before = rules[1]
	}
	holders := l.holders(rules[0])
	if membership.Held = election.Held(rules[0], before, holders); !membership.Held {
		l.Watch.Refresh(ctx, voters.HeartbeatInterval(l.SilenceTimeout)) // the views of the voters may be older than the rule
		holders = l.holders(rules[0])
		membership.Held = election.Held(rules[0], before, holders)
	}
	l.Before(before, membership.Held)
	l.sendRule(ctx, rules[0], before, holders)
	l.tellTimelines(ctx, rules[0])
	if l.Arbiter != nil {
		l.Report("announcing the primary to "+l.Arbiter.Name(), l.Arbiter.Announce(ctx, rules[0], l.look.Self, l.AnnounceFor))
	}
	if !rules[0].Line.Known() && membership.Held {
		switch line, err := l.look.Server.RuleLine(ctx); {
		case err != nil:
			return err
		case line.Known(): // the rule was written by an older version, or by hand
			next := rules[0]
			next.Seq, next.Line = next.Seq+1, line
			if err := addColumns(ctx, l.look.Server); err != nil {
				return err
			}
			return l.commitRule(ctx, rules[0], next)
		}
	}
	switch change := l.look.Policy.Reconcile(membership); {
	case change.Set != nil:
		return l.putSync(ctx, rules[0], set, *change.Set)
	case change.Rule != nil:
		return l.commitRule(ctx, rules[0], *change.Rule)
	case !membership.Held:
		l.Log.Debug("the rule is not held yet", "rule", rules[0], "holders", holders)
	}
	return nil
}

// syncInForce reads synchronous_standby_names. With synchronous_mode=off, a value that a user
// has set is left alone. A value under which no commit was seen to wait counts as if there were
// none.
func (l *Leader) syncInForce(ctx context.Context, rules []election.Rule) (none election.SyncSetting, err error) {
	quorum, t := l.Quorum, l
	if !quorum && !rules[0].Quorum && l.look.Status.Settings.SynchronousStandby == "" {
		return none, nil
	}
	s, err := syncrep.Read(ctx, l.look.Server)
	usual := s.Value == t.provenValue && syncrep.SettingOf(s.Value, l.look.Records).Equal(rules[0].SyncSetting())
	if err == nil && !usual && (quorum || rules[0].Quorum) { // this session may not have the newest settings yet, but a new one has
		s, err = l.freshSyncState(ctx)
	}
	former := l.writtenByOlderVersion(s, rules[0])
	switch {
	case err != nil:
		return none, err
	case !quorum && s.Foreign() && !former:
		return none, nil
	case s.Foreign() && former:
		err = syncrep.WriteMark(ctx, l.look.Server, s, s.Value)
	}
	set := syncrep.SettingOf(s.Value, l.look.Records)
	if (!t.inspected || rules[0].Seq == 1) && set.Equal(rules[0].SyncSetting()) {
		t.provenValue = s.Value // whoever wrote the rule, or opened the term, has seen a commit wait
	}
	if t.inspected = true; s.Value != t.provenValue {
		t.provenValue = ""
	}
	if set.NeedsStandbys() && t.provenValue == "" {
		set.Acks = -1
	}
	return set, err
}

// freshSyncState reads the setting over a new session of the local server. It has the settings
// of the server itself, while older sessions may not have reloaded theirs.
func (l *Leader) freshSyncState(ctx context.Context) (syncrep.State, error) {
	n, err := l.Connect(ctx)
	if err != nil {
		return syncrep.State{}, err
	}
	defer n.Close()
	return syncrep.Read(ctx, n)
}

// writtenByOlderVersion reports whether a value without our mark is the one that the rule asks
// for. An older version of repmgrd, which made no marks, has then written it.
func (l *Leader) writtenByOlderVersion(s syncrep.State, r election.Rule) bool {
	return s.Mark == "" && s.Value == l.syncValue(r.SyncSetting())
}

// putSync puts a setting in force. A setting that asks for more is believed only after a commit
// was seen to wait for it.
func (l *Leader) putSync(ctx context.Context, r election.Rule, now, s election.SyncSetting) error {
	var err error
	switch t := l; {
	case s.Acks == 0 && !l.Quorum:
		err = syncrep.Clear(ctx, l.look.Server)
	case s.Acks == 0 || now.NeedsStandbys() && s.Acks <= now.Acks:
		err = l.Sync.Set(ctx, l.look.Server, s)
	case time.Now().Before(t.retryAt):
		return t.lastErr
	default:
		err = l.Sync.Raise(ctx, l.look.Server, r.SyncSetting(), s)
		if errors.Is(err, syncrep.ErrUnproven) && !errors.Is(t.lastErr, syncrep.ErrUnproven) {
			l.Unproven(err)
		}
		t.retryAt, t.lastErr = time.Now().Add(l.SilenceTimeout), err
	}
	if err != nil {
		return err
	}
	l.retryAt, l.lastErr = time.Time{}, nil
	l.provenValue = l.syncValue(s)
	l.Log.Info("synchronous_standby_names changed", "acks", s.Acks, "standbys", s.Standbys)
	l.Wake()
	return nil
}

func (l *Leader) syncValue(s election.SyncSetting) string {
	return syncrep.Value(s, l.Sync.Name)
}

// Registered are the ids of all voters that the rule should have, in order.
func Registered(recs []registry.Record, arbiter bool) (ids []int32) {
	if arbiter {
		ids = append(ids, election.Arbiter)
	}
	for _, r := range recs {
		ids = append(ids, int32(r.ID))
	}
	slices.Sort(ids)
	return ids
}

// commitRule writes a rule on the local primary.
func (l *Leader) commitRule(ctx context.Context, before, r election.Rule) error {
	l.Before(before, false) // the new rule is not held yet
	if err := l.look.Server.WriteRule(ctx, r, l.Candidate); err != nil {
		return err
	}
	l.Log.Info("rule changed", "term", r.Term, "seq", r.Seq, "voters", r.Voters, "sync_standbys", r.Sync, "acks", r.Acks)
	l.Wake()
	return nil
}

// holders are the voters that are known to have the rule: it is in their tables, or they were
// told it.
func (l *Leader) holders(r election.Rule) []int32 {
	ids := []int32{int32(l.Self)}
	if l.rule.Compare(r) != 0 {
		l.rule, l.ruleSeenAt = r, time.Now()
	}
	for _, p := range l.Watch.Peers() {
		if p.ID != ids[0] && p.Holds(r) {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// healthy are the standbys that may be in the rule: they stream, keep up, answer and may be
// promoted. A standby that rejects the login is not healthy, because it could not give a
// pledge. A standby that fell silent a moment ago still is, so that short outages do not change
// the rule; so is a standby that the rule names, for the same time from the beginning of a term
// or of this daemon. A standby under whose name another server streams is not, as soon as that
// is known.
func (l *Leader) healthy(rule election.Rule, doubled []int32) (ids []int32) {
	now := time.Now()
	t := l
	if t.healthyTerm != rule.Term {
		t.healthyAt, t.healthyTerm = map[int32]time.Time{}, rule.Term
		for _, id := range rule.Sync {
			t.healthyAt[id] = now
		}
	}
	for _, r := range l.look.Records {
		p, id := voters.PeerOf(l.Watch.Peers(), int32(r.ID)), int32(r.ID)
		keepsUp := slices.ContainsFunc(registry.SendersOf(l.look.Status, r.Name), func(w registry.WALSender) bool { return w.FlushedLSN >= t.previousLSN })
		switch {
		case slices.Contains(doubled, id) || registry.NameProblem(r, l.look.Records) != "":
			delete(t.healthyAt, id)
		case keepsUp && p.Answer == election.Answers && p.Streams:
			t.healthyAt[id] = now
		}
	}
	t.previousLSN = l.look.Status.CurrentLSN
	for _, r := range l.look.Records {
		p := voters.PeerOf(l.Watch.Peers(), int32(r.ID))
		at, ok := t.healthyAt[int32(r.ID)]
		if ok && r.Role == registry.RoleStandby && r.Priority > 0 && !p.Delayed && p.ReplayBlocked == "" && now.Sub(at) < 2*l.SilenceTimeout {
			ids = append(ids, int32(r.ID))
		}
	}
	return ids
}

// sendRule gives the rule to witnesses and the arbiter, which do not stream, and to standbys
// that do not have it in time. The weight of the arbiter's vote depends on the set of voters,
// so it gets a rule with other voters only after the nodes hold it.
func (l *Leader) sendRule(ctx context.Context, r, before election.Rule, holders []int32) {
	for _, p := range l.Watch.Peers() {
		if p.ID == election.Arbiter && before.Known() && !slices.Equal(r.Voters, before.Voters) && !election.Held(r, before, holders) {
			continue
		}
		if p.Answer != election.Answers || p.NewestRule().Compare(r) >= 0 {
			continue
		}
		var err error
		switch {
		case p.ID == election.Arbiter:
			if err = l.Arbiter.Record(ctx, r, l.look.Records); errors.Is(err, ballot.ErrTerm) {
				err = nil // an election is under way, which the votes show
			}
		case p.Role == election.Witness:
			err = l.Watch.Voter(p.ID).Run(ctx, func(n *registry.Server) error { return registry.CopyMetadata(ctx, l.look.Server, n) })
		case p.Running == election.Standby && time.Since(l.ruleSeenAt) > voters.HeartbeatInterval(l.SilenceTimeout): // it replays slowly, or can not stream
			err = l.Watch.Voter(p.ID).RunAndLook(ctx, func(n *registry.Server) error { return n.AnnounceRule(ctx, r) })
		default:
			continue
		}
		l.Report(fmt.Sprintf("telling node %d the rule", p.ID), err)
	}
}

// addColumns upgrades a repmgr.rules table of an older version. It waits for a lock for a moment only: whoever reads
// the table, as all daemons do again and again, would wait behind it.
func addColumns(ctx context.Context, n *registry.Server) error {
	var have int
	err := n.Conn.QueryRow(ctx, `SELECT count(*) FROM pg_attribute WHERE attrelid = 'repmgr.rules'::regclass AND attname IN ('line', 'first_xid')`).Scan(&have)
	if err == nil && have < 2 {
		_, err = n.Conn.PgConn().Exec(ctx, `SET LOCAL lock_timeout = '100ms'; ALTER TABLE repmgr.rules ADD COLUMN IF NOT EXISTS line jsonb, ADD COLUMN IF NOT EXISTS first_xid bigint`).ReadAll()
	}
	if err != nil {
		return n.QueryError("add a column to repmgr.rules", err)
	}
	return nil
}

// timelinesInterval is how often the setting that tells clients of the timelines is looked after within a term: somebody may
// have removed it. Columns that can not be added are tried again as often.
const timelinesInterval = 30 * time.Second

// tellTimelines keeps the setting that tells clients of the timelines, once the line of the newest rule is known. Where
// that fails, the outcome of some of their commits stays unknown, and nothing else depends on it.
func (l *Leader) tellTimelines(ctx context.Context, newest election.Rule) {
	if !newest.Line.Known() || newest.Term == l.toldTerm && time.Since(l.toldAt) < timelinesInterval {
		return
	}
	l.toldTerm, l.toldAt = newest.Term, time.Now()
	var err error
	if !l.upgraded {
		err = addColumns(ctx, l.look.Server)
		l.upgraded = err == nil
	}
	if err == nil {
		if err = l.look.Server.TellTimelines(ctx); err != nil {
			l.toldTerm = 0 // the next step tries it again
		}
	}
	if err != nil && !l.untold {
		l.Log.Warn("clients can not be told of the timelines: the outcome of some of their commits will stay unknown", "err", err, "hint", failure.Hint(err))
	}
	l.untold = err != nil
}
