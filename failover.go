package repmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/explain"
	"github.com/pgrepmgr/repmgr/internal/coordinator"
	"github.com/pgrepmgr/repmgr/internal/remote"
	"github.com/pgrepmgr/repmgr/internal/restart"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/switchover"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/plan"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// FailoverOptions are the choices of [Cluster.Failover].
type FailoverOptions struct {
	// Force goes on although failover is paused, nodes are set to manual, there were
	// too many failovers, the winner lacks too much, or the primary is starting up, shutting down or recovering
	// and has not done so for primary_start_timeout: where commits do not wait for
	// standbys, only if somebody is there to stop it. A majority and the acknowledged commits are never
	// overridden: that is what [Cluster.Promote] is for.
	Force  bool
	DryRun bool // survey the voters and say who would win, without asking for pledges
}

// FailoverResult is the result of an election.
type FailoverResult struct {
	Term      int64           `json:"term"`
	Health    election.Health `json:"health"` // the verdict on the former primary
	Former    *Record         `json:"former_primary,omitempty"`
	Winner    *Record         `json:"winner,omitempty"`
	Rule      election.Rule   `json:"rule,omitzero"`
	StartedAt time.Time       `json:"started_at"`
	Outage    time.Duration   `json:"outage_ns"`  // from the last sign of life of the former primary until the new one's first commit
	LostBytes *int64          `json:"lost_bytes"` // WAL that the former primary is known to have had beyond the winner; nil: not known
	Steps     []FailoverStep  `json:"steps"`
	Following []Record        `json:"following"` // standbys that stream from the winner already
	DryRun    bool            `json:"dry_run,omitempty"`
}

// FailoverStep is one step of an election, with the evidence for it.
type FailoverStep = registry.FailoverStep

// RefusalError is a failover that was refused, with the name of the reason. errors.Is finds it
// as [ErrRefused], and as [ErrNoQuorum] or [ErrPaused] where it is that.
type RefusalError struct {
	Refusal election.Refusal
	Health  election.Health
	Detail  string
}

func (e *RefusalError) Error() string {
	text := "no failover: " + string(e.Refusal)
	if e.Refusal == election.RefusedHealth {
		text = "no failover: " + string(e.Health)
	}
	if e.Detail != "" {
		text += " (" + e.Detail + ")"
	}
	return text
}

// Is matches the sentinel error of the refusal.
func (e *RefusalError) Is(target error) bool {
	switch target {
	case ErrRefused:
		return true
	case ErrPaused:
		return e.Refusal == election.RefusedPaused
	case ErrNoQuorum:
		return slices.Contains([]election.Refusal{election.RefusedNoMajority, election.RefusedSync, election.RefusedPledges}, e.Refusal)
	}
	return false
}

// refusal is the error of an election that was refused, with what to do about it. It does not
// advise what was tried already.
func (c *Cluster) refusal(r *coordinator.Refused, rule election.Rule, w *voters.Watch, forced bool) error {
	var left []Voter
	for _, p := range w.Peers() {
		if rec := w.Record(p.ID); p.ID != rule.Primary && rec.ID != 0 {
			v := Voter{ID: rec.ID, Name: rec.Name, Answer: p.Answer}
			if v.Answer == election.Rejects {
				v.Login = c.userOf(rec)
			}
			left = append(left, v)
		}
	}
	return hint(&RefusalError{r.Refusal, r.Health, r.Detail}, "%s", explain.LetInFirst(r.Refusal, left, explain.RefusalHint(r.Refusal, r.Health, forced)))
}

// Failover holds one election now: it surveys all voters, recruits a majority,
// promotes the one that has most and points the others to it. It may be called
// on any machine that reaches the nodes; the coordinator need not be the winner.
// It refuses with a [RefusalError] while the primary lives or where it would be
// unsafe; then nothing was changed, unless the steps say that voters have
// pledged themselves: their own Monitors, or the next election, free them again.
func (c *Cluster) Failover(ctx context.Context, o FailoverOptions) (FailoverResult, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return FailoverResult{}, err
	}
	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(recs)
	policy := c.policy()
	policy.Forced, policy.OnShutdown = o.Force, true
	w.AwaitVerdict(ctx, policy)
	e := c.electionOptions(w)
	e.KnownTerm, e.Presume = voters.HighestTerm(w.Peers()), true
	res, err := c.holdElection(ctx, e, w, policy, o.DryRun)
	if err == nil && !o.DryRun {
		c.recordFailover(ctx, w, res)
	}
	return res, err
}

// holdElection holds an election among the voters that w watches.
func (c *Cluster) holdElection(ctx context.Context, o coordinator.Options, w *voters.Watch, policy election.Policy, dryRun bool) (FailoverResult, error) {
	res, err := coordinator.New(o, w, policy).Run(ctx, dryRun)
	if refused := (*coordinator.Refused)(nil); errors.As(err, &refused) {
		err = c.refusal(refused, res.Rule, w, policy.Forced)
	}
	return FailoverResult(res), err
}

// electionOptions are what package coordinator needs of this cluster.
func (c *Cluster) electionOptions(w *voters.Watch) coordinator.Options {
	o := coordinator.Options{
		Self: c.cfg.NodeID, Candidate: c.candidate(), Consensus: c.cfg.PrimaryVisibilityConsensus,
		SilenceTimeout: c.cfg.SilenceTimeout, FenceTimeout: c.cfg.FenceTimeout, PromotionTimeout: c.cfg.PromoteCheckTimeout,
		ValidationCommand: c.cfg.FailoverValidationCommand, ValidationTimeout: c.cfg.EventNotificationTimeout,
		Sync: c.syncWriter(w), Log: c.log,
		Connect: c.connectTo, MakeSlot: c.slotOrNone, Promote: c.promoteWinner, StandbySettings: c.login().Settings,
	}
	if c.cfg.Arbiter != nil {
		o.Arbiter = arbiterVoter{c.cfg.Arbiter}
	}
	return o
}

// arbiterVoter makes an arbiter usable for package coordinator.
type arbiterVoter struct{ Arbiter }

func (a arbiterVoter) Pledge(ctx context.Context, b ballot.Ballot) (ballot.Ballot, election.Rule, error) {
	st, err := a.Arbiter.Pledge(ctx, b)
	return st.Ballot, st.Rule, err
}

// recordFailover writes the event and the history row of a failover, on its winner.
func (c *Cluster) recordFailover(ctx context.Context, w *voters.Watch, res FailoverResult) {
	e := Event{
		NodeID: res.Winner.ID, Node: res.Winner.Name, Type: EventFailoverPromote, Success: true, PeerID: res.Former.ID, Peer: res.Former.Name,
		Details: fmt.Sprintf("%s promoted to primary; old primary %s marked as failed", res.Winner, res.Former),
	}
	switch {
	case res.Health == election.HealthInterrupted:
		e.Details = fmt.Sprintf("%s is the primary in place of %s: what promoted it left no record, and term %d confirms it", res.Winner, res.Former, res.Term)
	case res.Former.ID == res.Winner.ID:
		e.Details = fmt.Sprintf("%s promoted to primary again", res.Winner)
	}
	c.recordOnWinner(ctx, w, res, e)
}

// recordOnWinner writes an event and the history row of an election, on its winner.
func (c *Cluster) recordOnWinner(ctx context.Context, w *voters.Watch, res FailoverResult, e Event) {
	ctx, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout)
	defer cancel()
	e.Failover = &FailoverRecord{
		Term: res.Term, FormerID: res.Former.ID, Former: res.Former.Name, PrimaryID: res.Winner.ID, Primary: res.Winner.Name,
		Coordinator: c.candidate(), Reason: res.Health, StartedAt: res.StartedAt, Outage: res.Outage, LostBytes: res.LostBytes, Steps: res.Steps,
	}
	err := w.Voter(int32(res.Winner.ID)).RunNow(ctx, func(n *registry.Server) error {
		err := n.RecordFailover(ctx, *e.Failover)
		c.emit(ctx, n, e)
		return err
	})
	if err != nil {
		c.log.Warn("the failover is not in repmgr.failovers", "err", err)
	}
}

// promoteWinner runs promote_command where the winner is the local node and the command is set.
// Otherwise it promotes over SQL.
func (c *Cluster) promoteWinner(ctx context.Context, n *registry.Server, winner Record) error {
	local := winner.ID == c.cfg.NodeID
	if local && c.cfg.PromoteCommand != "" {
		ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.PromoteCheckTimeout, fmt.Errorf("no end within promote_check_timeout (%s)", c.cfg.PromoteCheckTimeout))
		defer cancel()
		out, err := shell.Run(ctx, c.cfg.PromoteCommand, map[byte]shell.Value{'n': {Env: "REPMGR_NODE_ID", Text: winner.ID.String()}})
		if err != nil {
			return hint(kind(ErrPromotion, "promote_command on %s: %w%s", n.Name, promoteCommandError{err}, shell.AfterColon(shell.LastLines(out, 5))), "The next election promotes without it.")
		}
		var inRecovery bool
		if err := n.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil || !inRecovery {
			return err
		}
	}
	remote := *c
	if !local {
		remote.cfg.ServicePromoteCommand = ""
	}
	return remote.promoteOnly(ctx, n)
}

// SwitchoverOptions are the choices of [Cluster.Switchover].
type SwitchoverOptions struct {
	To         NodeID        // the new primary. Defaults to the local node where that is a standby, else to the one that an election would choose.
	At         time.Time     // the earliest time to begin, by the clock of the primary's machine. The zero value is now. A later time is not waited for.
	Timeout    time.Duration // how long the shutdown of the primary may take before it is given up. Defaults to shutdown_check_timeout.
	Force      bool          // begin although a check fails that an operator may override
	DryRun     bool          // make all checks and return the plan, change nothing
	RemoteUser string        // the OS user on the other machines, for ssh
}

// SwitchoverResult is the result of a switchover.
type SwitchoverResult struct {
	Plan      plan.Plan     `json:"plan"`
	From      Record        `json:"from"`        // the primary before
	To        Record        `json:"to"`          // the primary after it
	Term      int64         `json:"term"`        // of the new primary; 0: there is none yet
	Returned  bool          `json:"returned"`    // the former primary streams from the new one
	Scheduled bool          `json:"scheduled"`   // it begins later, and was not waited for
	At        time.Time     `json:"at,omitzero"` // of one that is scheduled, or was taken back: the earliest time to begin
	Elapsed   time.Duration `json:"elapsed_ns"`  // until the new primary was in office
	DryRun    bool          `json:"dry_run,omitempty"`
}

// PlanSwitchover returns the plan of a switchover, with everything that stands in its way. It
// changes nothing.
func (c *Cluster) PlanSwitchover(ctx context.Context, o SwitchoverOptions) (plan.Plan, error) {
	w, recs, err := c.watchAll(ctx)
	if err != nil {
		return plan.Plan{}, err
	}
	defer w.Close()
	ask := c.askSwitchover(w, recs, o)
	err = ask.Look(ctx)
	return ask.Plan, err
}

// watchAll watches all nodes, each of which was asked once. The caller closes the watch.
func (c *Cluster) watchAll(ctx context.Context) (*voters.Watch, []Record, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return nil, nil, err
	}
	w := c.watchVoters(context.WithoutCancel(ctx), func() {}) // until it is closed: what was begun is seen to its end
	w.SetNodes(recs)
	w.AwaitAnswers(ctx)
	return w, recs, nil
}

func (c *Cluster) askSwitchover(w *voters.Watch, recs []Record, o SwitchoverOptions) switchover.Ask {
	ask := switchover.Ask{
		Watch: w, Policy: c.policy(), Limits: switchover.Limits{Archive: c.cfg.ArchiveReadyCritical}, To: int32(o.To), At: o.At, Limit: cmp.Or(o.Timeout, c.cfg.ShutdownCheckTimeout), Force: o.Force,
	}
	if self, ok := registry.ByID(recs, c.cfg.NodeID); ok && o.To == 0 && self.Role == RoleStandby {
		ask.To = int32(self.ID)
	}
	return ask
}

// Switchover makes a standby the primary and the primary its standby. It may be called on any
// machine that reaches the nodes: it asks the Monitor of the primary, which alone stops its
// server, and waits for the outcome: first for the new primary, and then, for node_rejoin_timeout, for
// the return of the old one, whose Monitor goes on with it in any case. That Monitor must run with FailoverAutomatic. Where the
// primary has none, repmgrd is started over ssh on all nodes without one, until the switchover is done. The error is [ErrRefused] where something stands in the way, and names all of it; then nothing was changed.
// An [ErrTimeout] says that the outcome is not known yet.
func (c *Cluster) Switchover(ctx context.Context, o SwitchoverOptions) (SwitchoverResult, error) {
	start := time.Now()
	w, recs, err := c.watchAll(ctx)
	if err != nil {
		return SwitchoverResult{DryRun: o.DryRun}, err
	}
	defer w.Close()
	ask := c.askSwitchover(w, recs, o)
	lent := ask.MissingDaemons(ctx)
	if lent.None() {
		return c.switchOver(ctx, start, ask, o)
	}
	login := remote.Login{SSHOptions: c.cfg.SSHOptions, User: o.RemoteUser, Program: filepath.Join(c.cfg.RepmgrBindir, "repmgrd"), Self: c.cfg.NodeID}
	res := SwitchoverResult{Plan: lent.Plan(login), From: ask.From, DryRun: o.DryRun}
	err = lent.Lend(ctx, login, c.log, o.DryRun, func() (err error) {
		res, err = c.switchOver(ctx, time.Now(), ask, o)
		return err
	})
	return res, err
}

func (c *Cluster) switchOver(ctx context.Context, start time.Time, ask switchover.Ask, o SwitchoverOptions) (res SwitchoverResult, err error) {
	res.DryRun = o.DryRun
	if err := ask.Look(ctx); err != nil {
		return res, err
	}
	res.Plan, res.From, res.To = ask.Plan, ask.From, ask.Target
	if left := res.Plan.Standing(o.Force); len(left) > 0 {
		return res, switchover.Refused("switchover", left)
	}
	if o.DryRun {
		return res, nil
	}
	if err := ask.Request(ctx); err != nil {
		return res, err
	}
	if res.Scheduled = ask.Later; res.Scheduled {
		res.At = o.At
		return res, nil
	}
	res.Term, res.To, err = ask.Await(ctx)
	if res.Elapsed = time.Since(start); err == nil {
		res.Returned = res.To.ID == res.From.ID || ask.AwaitReturn(ctx, c.cfg.NodeRejoinTimeout)
	}
	return res, err
}

// CancelSwitchover takes a switchover back that was asked for and has not begun: either it is taken back, and nothing of it
// happens, or the error is [ErrRefused], because it has begun. [ErrNotScheduled] says that there is none. It may be called on
// any machine that reaches the primary, which alone has the request. Only DryRun of the options counts.
func (c *Cluster) CancelSwitchover(ctx context.Context, o SwitchoverOptions) (SwitchoverResult, error) {
	res := SwitchoverResult{DryRun: o.DryRun}
	w, recs, err := c.watchAll(ctx)
	if err != nil {
		return res, err
	}
	defer w.Close()
	ask := c.askSwitchover(w, recs, SwitchoverOptions{})
	h, err := ask.Cancel(ctx, o.DryRun, func(n *registry.Server, h election.Handover) {
		c.emit(ctx, n, Event{NodeID: ask.From.ID, Node: ask.From.Name, Type: EventSwitchover, Details: "request " + h.ID + ": it was taken back before it began"})
	})
	res.From, res.To, res.At = ask.From, ask.Target, h.Start
	return res, err
}

// DrainOptions are the choices of [Cluster.Drain].
type DrainOptions struct {
	Timeout time.Duration // for each of its waits. Defaults to node_rejoin_timeout.
	Force   bool          // as in [SwitchoverOptions]
	DryRun  bool          // check and plan, change nothing
}

// DrainResult is the result of [Cluster.Drain].
type DrainResult struct {
	Switchover *SwitchoverResult `json:"switchover"` // nil: the node was no primary
	DryRun     bool              `json:"dry_run,omitempty"`
}

// Drain makes the local server one that may be stopped: where it is the primary, it hands over
// ([Cluster.Switchover]) and waits until the former primary is a standby; then it waits until commits go on
// without this node. It stops nothing. A server that is down, or a witness, is drained already. The errors
// are those of Switchover; an [ErrTimeout] says what still keeps the node.
func (c *Cluster) Drain(ctx context.Context, o DrainOptions) (DrainResult, error) {
	start, res := time.Now(), DrainResult{DryRun: o.DryRun}
	w, recs, err := c.watchAll(ctx)
	if err != nil {
		return res, err
	}
	defer w.Close()
	self, ok := registry.ByID(recs, c.cfg.NodeID)
	if !ok {
		return res, registry.Unknown(recs, c.cfg.NodeID, "")
	}
	limit := cmp.Or(o.Timeout, c.cfg.NodeRejoinTimeout)
	me, err := switchover.AwaitRole(ctx, w, int32(self.ID), limit)
	if err != nil {
		return res, err
	}
	if srv, err := c.localServer(""); err == nil && me.Answer == election.Refused && srv.Runs() {
		return res, hint(kind(ErrRefused, "the server in %s runs, and does not answer at the address of %s", srv.Dir, self), "Is conninfo right, and is data_directory that of this node?")
	}
	if me.Running == election.Primary && self.Role != RoleWitness {
		if err := switchover.CheckDrain(me, self); err != nil {
			return res, err
		}
		so := SwitchoverOptions{Timeout: o.Timeout, Force: o.Force, DryRun: o.DryRun}
		sw, err := c.switchOver(ctx, start, c.askSwitchover(w, recs, so), so)
		res.Switchover = &sw
		if err != nil || o.DryRun {
			return res, err
		}
	}
	if o.DryRun {
		return res, nil
	}
	return res, switchover.AwaitDrained(ctx, w, int32(self.ID), c.cfg.Durability == DurabilityRequired, limit)
}

// RestartHow is how the server of the primary is restarted. The zero value: whichever was measured to be shorter.
type RestartHow = restart.How

const (
	RestartInPlace    = restart.InPlace    // it stays the primary
	RestartSwitchover = restart.Switchover // it hands over, and comes back as a standby
)

// RestartOptions are the choices of [Cluster.RollingRestart].
type RestartOptions struct {
	Nodes   []NodeID      // only these. Empty: all registered nodes.
	Pending bool          // only those where a setting waits for a restart
	Primary RestartHow    // the zero value measures which way is shorter
	Force   bool          // shut the primary down although a check fails that an operator may override
	Anew    bool          // begin with the first node although an earlier command did not end
	Timeout time.Duration // how long each shutdown may take before it is ended by force. Defaults to shutdown_check_timeout.
	DryRun  bool          // make all checks and return the plan, change nothing
}

// RestartedNode is a node whose server was restarted.
type RestartedNode = restart.Restarted

// RestartResult is the result of [Cluster.RollingRestart].
type RestartResult struct {
	Plan      plan.Plan       `json:"plan"`
	Restarted []RestartedNode `json:"restarted"` // in the order in which it was done; also where an error ended that
	Skipped   []Record        `json:"skipped"`   // the nodes that an earlier command had restarted, which did not end
	DryRun    bool            `json:"dry_run,omitempty"`
}

// RollingRestart restarts the servers of the cluster one after the other: a setting that rises on the standbys first, one
// that falls on the primary first. It may be called on any machine that reaches the nodes. Each Monitor restarts its
// own server, and must run with FailoverAutomatic; the next node waits until the last one does again what it did
// before. It ends with the first node that does not, and called again it goes on there. The error is [ErrRefused]
// where something stands in the way, and names all of it; then nothing was changed.
func (c *Cluster) RollingRestart(ctx context.Context, o RestartOptions) (RestartResult, error) {
	res := RestartResult{Restarted: []RestartedNode{}, Skipped: []Record{}, DryRun: o.DryRun}
	w, recs, err := c.watchAll(ctx)
	if err != nil {
		return res, err
	}
	defer w.Close()
	r := restart.Roll{
		Watch: w, Policy: c.policy(), Nodes: o.Nodes, Pending: o.Pending, Anew: o.Anew, How: o.Primary, Required: c.cfg.Durability == DurabilityRequired, Log: c.log,
		Limit: cmp.Or(o.Timeout, c.cfg.ShutdownCheckTimeout), Start: c.cfg.StandbyReconnectTimeout, Follow: c.cfg.NodeRejoinTimeout,
		Shutdown: func(ctx context.Context, target int32, how RestartHow) (plan.Plan, error) {
			ask := c.askRestart(w, recs, target, how, o)
			err := ask.Look(ctx)
			return ask.Plan, err
		},
		RestartPrimary: func(ctx context.Context, target int32, how RestartHow) error {
			sw, err := c.switchOver(ctx, time.Now(), c.askRestart(w, recs, target, how, o), SwitchoverOptions{Force: o.Force})
			switch {
			case err == nil && how == RestartInPlace && sw.To.ID != sw.From.ID:
				err = hint(kind(ErrServerControl, "it did not start again, and %s is the primary now, in term %d", sw.To, sw.Term), "Look at the log of its server.")
			case err == nil && !sw.Returned:
				err = kind(ErrTimeout, "it handed over to %s, and does not stream from it within %s", sw.To, c.cfg.NodeRejoinTimeout)
			}
			return err
		},
	}
	err = r.Look(ctx)
	if res.Plan, res.Skipped = r.Plan, append(res.Skipped, r.Skipped...); err != nil {
		return res, err
	}
	if left := res.Plan.Standing(o.Force); len(left) > 0 {
		return res, switchover.Refused("restart", left)
	}
	if !o.DryRun {
		err = r.Run(ctx)
		res.Restarted = append(res.Restarted, r.Done...)
	}
	return res, err
}

// askRestart asks the Monitor of the primary to restart its server.
func (c *Cluster) askRestart(w *voters.Watch, recs []Record, target int32, how RestartHow, o RestartOptions) switchover.Ask {
	ask := c.askSwitchover(w, recs, SwitchoverOptions{To: NodeID(target), Timeout: o.Timeout, Force: o.Force})
	ask.Restart = how != RestartSwitchover
	return ask
}

// restartServer carries out the restart that this Monitor was asked for, or that one before it had begun.
func (m *Monitor) restartServer(ctx context.Context, c *Cluster, hold func() error) error {
	srv, err := c.localServer(m.guard.DataDirectory())
	if err != nil {
		return err
	}
	me := voters.PeerOf(m.watch.Peers(), int32(c.cfg.NodeID))
	w := restart.Work{
		Request: me.Restart, Server: &srv.Server, Witness: me.Role == election.Witness, Log: c.log, Connect: c.connectLocal, Suspend: m.guard.Suspend,
		Hold: hold, Screen: func(ctx context.Context) (Role, string, error) { return c.screen(ctx, srv) },
	}
	if begun, ok := restart.LeftBehind(w.Server, time.Now()); ok {
		w.Request = begun
	}
	if err = w.Run(ctx); err != nil {
		m.tellLater(Event{Type: EventNodeRestart, Details: restart.Request(w.Request.ID) + err.Error()})
	}
	return err
}

// handOver carries out the switchover that the local primary was asked for.
func (m *Monitor) handOver(ctx context.Context, c *Cluster, policy election.Policy) error {
	srv, err := c.localServer(m.guard.DataDirectory())
	if err != nil {
		return err
	}
	me := voters.PeerOf(m.watch.Peers(), int32(c.cfg.NodeID))
	var res FailoverResult
	h := switchover.New(switchover.Options{
		Request: me.Handover, Self: m.watch.Record(me.ID), Server: &srv.Server, Watch: m.watch, Policy: policy, Limits: switchover.Limits{Archive: c.cfg.ArchiveReadyCritical}, Log: c.log, Connect: c.connectLocal,
		LogIn: c.loginAsStandby, HoldClients: c.cfg.HoldClients, Suspend: m.guard.Suspend,
		Screen: func(ctx context.Context) (Role, string, error) { return c.screen(ctx, srv) },
		Elect: func(ctx context.Context, p election.Policy) (winner int32, pledged bool, err error) {
			o := c.electionOptions(m.watch)
			o.Consensus, o.ValidationCommand = false, "" // they are asked before a failover, and this server was shut down for a switchover
			o.KnownTerm = voters.HighestTerm(m.watch.Peers())
			if res, err = c.holdElection(ctx, o, m.watch, p, false); res.Winner != nil {
				winner = int32(res.Winner.ID)
			}
			return winner, len(res.Steps) > 1, err // the first step is the survey
		},
	})
	if err := h.Run(ctx); err != nil {
		details := fmt.Sprintf("request %s: %v", me.Handover.ID, err)
		if help := Hint(err); help != "" {
			details += ". " + help
		}
		m.tellLater(Event{Type: EventSwitchover, Details: details})
		return err
	}
	if me.Handover.Restart && res.Winner == nil {
		return nil
	}
	res.StartedAt, res.Steps = h.Trace(res.StartedAt, res.Steps)
	res.Health = election.HealthHandedOver
	c.recordSwitchover(context.WithoutCancel(ctx), m.watch, res)
	return nil
}

// recordSwitchover writes the event and the history row of a switchover, on the new primary.
func (c *Cluster) recordSwitchover(ctx context.Context, w *voters.Watch, res FailoverResult) {
	c.recordOnWinner(ctx, w, res, Event{
		NodeID: res.Winner.ID, Node: res.Winner.Name, Type: EventSwitchover, Success: true, PeerID: res.Former.ID, Peer: res.Former.Name,
		Details: fmt.Sprintf("%s promoted to primary, %s demoted to standby", res.Winner, res.Former),
	})
}
