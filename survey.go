package repmgr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/pgrepmgr/repmgr/doctor"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
	"github.com/pgrepmgr/repmgr/wal"
)

// primaryOf finds the one primary. Where there are several, it is the one that sends to this
// node and is not behind the node's timeline.
func (c *Cluster) primaryOf(ctx context.Context, recs []Record, timeline wal.Timeline) (Record, error) {
	rec, err := c.findPrimary(ctx, recs)
	if !errors.Is(err, ErrRefused) {
		return rec, err
	}
	for _, p := range primaries(c.survey(ctx, recs)) {
		if registry.Attachment(p.Status, c.cfg.NodeName) != "" && p.Status.Timeline >= timeline {
			return p.Record, nil
		}
	}
	return Record{}, err
}

// EventFilter chooses events; a zero field chooses all.
type EventFilter struct {
	NodeID NodeID
	Node   string
	Type   EventType
	Limit  int
}

// Events reads the events that the local node knows of, newest first.
func (c *Cluster) Events(ctx context.Context, f EventFilter) ([]Event, error) {
	local, err := c.connectLocal(ctx)
	if err != nil {
		return nil, err
	}
	defer local.Close()
	if err := local.NeedNodes(ctx); err != nil {
		return nil, err
	}
	types := []string{}
	if f.Type != "" {
		types = append(types, string(f.Type))
	}
	events, err := local.Events(ctx, registry.EventFilter{NodeID: f.NodeID, Node: f.Node, Types: types, Limit: f.Limit})
	if err != nil {
		return nil, err
	}
	if len(events) == 0 && (f.NodeID != 0 || f.Node != "") { // a node that was removed may still have events
		recs, err := local.Records(ctx)
		if err != nil {
			return nil, err
		}
		_, byID := registry.ByID(recs, f.NodeID)
		if _, byName := registry.ByName(recs, f.Node); !byID && !byName {
			return nil, registry.Unknown(recs, f.NodeID, f.Node)
		}
	}
	return events, nil
}

// probe is the result of one look at a registered node.
type probe struct {
	report.Look
	foreign *registry.ForeignDaemon // a daemon of repmgr 5 that runs there; nil: none
	service ServiceNode             // the Monitor that runs there, where askService was called
	server  doctor.Server           // what the server says of itself, where askServer was called
	unread  error                   // why it did not; nil: it did
}

// looks are the probes without what runs at the nodes.
func looks(probes []probe) []report.Look {
	all := make([]report.Look, len(probes))
	for i, p := range probes {
		all[i] = p.Look
	}
	return all
}

// primaries are the servers that accept writes.
func primaries(probes []probe) []report.Look { return report.Primaries(looks(probes)) }

// followUp is a further question to a node that answered, over the same connection.
type followUp func(ctx context.Context, n *registry.Server, p *probe)

// look connects to a node and reads its state, within one connect_timeout.
func (c *Cluster) look(ctx context.Context, r Record, ask ...followUp) probe {
	timeout := postgres.DefaultConnectTimeout
	if cfg, err := postgres.ConnConfig(r.Conninfo); err == nil {
		timeout = cfg.ConnectTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within connect_timeout (%s)", timeout))
	defer cancel()
	n, err := c.connectTo(ctx, r)
	if err != nil {
		return probe{Look: report.Look{Record: r, Err: err}}
	}
	defer n.Close()
	p := probe{Look: report.Look{Record: r}}
	if p.Status, p.Err = n.Status(ctx); p.Err == nil && !p.Status.InRecovery {
		p.Rows, _ = n.Records(ctx) // without them the caller's copy is used
	}
	if p.Err == nil {
		if rules, err := n.Rules(ctx); err == nil && len(rules) > 0 {
			p.Rule = rules[0]
		}
		var err error
		if p.foreign, err = n.ForeignDaemon(ctx); err != nil { // a node that can not be asked counts as without one
			p.service.ServiceError = err.Error()
		}
		for _, f := range ask {
			f(ctx, n, &p)
		}
	}
	return p
}

// survey looks at all nodes at the same time, so that ten silent ones take no longer than one.
// The results are in the order of recs.
func (c *Cluster) survey(ctx context.Context, recs []Record, ask ...followUp) []probe {
	probes := make([]probe, len(recs))
	var wg sync.WaitGroup
	for i, r := range recs {
		wg.Go(func() { probes[i] = c.look(ctx, r, ask...) })
	}
	wg.Wait()
	return probes
}

// findPrimary looks at every registered node and returns the one primary. Two primaries are a
// split brain, in which only a person can decide which one counts.
func (c *Cluster) findPrimary(ctx context.Context, recs []Record) (Record, error) {
	if len(recs) == 0 {
		return Record{}, hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	probes := c.survey(ctx, recs)
	found := primaries(probes)
	switch len(found) {
	case 1:
		return found[0].Record, nil
	case 0:
		var seen []string
		for _, p := range probes {
			what := "in recovery"
			if p.Err != nil {
				what = string(p.Reach())
			}
			seen = append(seen, fmt.Sprintf("%s: %s", p.Record, what))
		}
		return Record{}, hint(kind(ErrNoPrimary, "no registered node is a reachable primary (%s)", strings.Join(seen, "; ")),
			"%s", noPrimaryHint(probes))
	default:
		var names []string
		for _, p := range found {
			names = append(names, fmt.Sprintf("%s, timeline %d", p.Record, p.Status.Timeline))
		}
		return Record{}, hint(kind(ErrRefused, "more than one node runs as primary: %s", strings.Join(names, "; ")),
			"Stop the one whose data is not wanted before anything else. It can then be cloned anew as a standby.")
	}
}

// noPrimaryHint says what to do where no primary was found. It does not advise to replace a
// primary that lives.
func noPrimaryHint(probes []probe) string {
	for _, p := range probes {
		switch reach := p.Reach(); {
		case p.Record.Role != RolePrimary || !p.Record.Active || p.Err == nil || !reach.Answers():
		case reach == postgres.ReachRejected:
			return fmt.Sprintf("%s lives, and rejects this login: look at its pg_hba.conf, and at the password.", p.Record)
		case reach == postgres.ReachFull:
			return fmt.Sprintf("%s lives, and has no free connection: end some, or raise max_connections.", p.Record)
		default:
			return fmt.Sprintf("%s is starting up, shutting down or recovering: wait for it, and look at its log.", p.Record)
		}
	}
	return "Start the primary. If it is lost, this says which standby to promote, and how: repmgr cluster explain"
}

// Primary finds the one primary, by looking at all registered nodes. It works while the local server is
// down, where its Monitor has kept the rows. No primary is an [ErrNoPrimary], two are an [ErrRefused].
func (c *Cluster) Primary(ctx context.Context) (Record, error) {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return Record{}, err
	}
	return c.findPrimary(ctx, recs)
}

// FollowPrimary calls tell with the primary, and again each time when there is another one, until ctx ends
// or tell returns an error. While there is no primary it waits.
func (c *Cluster) FollowPrimary(ctx context.Context, tell func(Record) error) error {
	recs, err := c.anyRecords(ctx)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	w := c.watchVoters(ctx, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	defer w.Close()
	for told := NodeID(0); ; {
		w.SetNodes(recs)
		if id := w.InOffice(); id != 0 && id != told {
			if err := tell(w.Record(int32(id))); err != nil {
				return err
			}
			told = id
		}
		if err := wait.Until(ctx, changed, registerInterval); err != nil {
			return err
		}
		if now, err := c.anyRecords(ctx); err == nil {
			recs = now
		}
	}
}

// connectPrimary returns a connection to the primary: local itself where that is the primary,
// otherwise a new one. The caller closes it; that closes local only where they are the same
// connection.
func (c *Cluster) connectPrimary(ctx context.Context, local *registry.Server) (*registry.Server, error) {
	var inRecovery bool
	if err := local.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil {
		return nil, local.QueryError("read the recovery state", err)
	}
	recs, err := local.Records(ctx)
	if self, ok := registry.ByID(recs, c.cfg.NodeID); !inRecovery && (!ok || self.Role != RoleWitness) {
		return local, nil // a witness is not a primary, and its rows are a copy
	}
	if err != nil {
		return nil, err
	}
	primary, err := c.findPrimary(ctx, recs)
	if err != nil {
		return nil, err
	}
	return c.connectTo(ctx, primary)
}

// withPrimary runs f on a connection to the primary.
func (c *Cluster) withPrimary(ctx context.Context, f func(*registry.Server) error) error {
	local, err := c.connectLocal(ctx)
	if err != nil {
		return err
	}
	defer local.Close()
	primary, err := c.connectPrimary(ctx, local)
	if err != nil {
		return err
	}
	if primary != local {
		defer primary.Close()
	}
	return f(primary)
}

// CleanupOptions says which monitoring history is deleted.
type CleanupOptions struct {
	KeepDays int    // rows of the last so many days stay. Defaults to 0: none stays.
	NodeID   NodeID // only the rows of this standby. Defaults to all.
	DryRun   bool   // count only
}

// CleanupResult says what was deleted, or would be with DryRun.
type CleanupResult struct {
	Deleted int64 `json:"deleted"`
	DryRun  bool  `json:"dry_run,omitempty"`
}

// Cleanup deletes old rows of repmgr.monitoring_history on the primary.
func (c *Cluster) Cleanup(ctx context.Context, o CleanupOptions) (CleanupResult, error) {
	if o.KeepDays < 0 {
		return CleanupResult{}, kind(ErrConfig, "keep-history %d: must be 0 or more days", o.KeepDays)
	}
	res := CleanupResult{DryRun: o.DryRun}
	err := c.withPrimary(ctx, func(primary *registry.Server) error {
		if err := primary.NeedNodes(ctx); err != nil {
			return err
		}
		if o.NodeID != 0 {
			recs, err := primary.Records(ctx)
			if err != nil {
				return err
			}
			if _, ok := registry.ByID(recs, o.NodeID); !ok {
				return registry.Unknown(recs, o.NodeID, "")
			}
		}
		var err error
		if o.DryRun {
			res.Deleted, err = primary.CountHistory(ctx, o.KeepDays, o.NodeID)
		} else {
			res.Deleted, err = primary.DeleteHistory(ctx, o.KeepDays, o.NodeID)
		}
		if err != nil || o.DryRun {
			return err
		}
		details := fmt.Sprintf("%d rows of monitoring history deleted; the last %d days kept", res.Deleted, o.KeepDays)
		c.emit(ctx, primary, Event{NodeID: c.cfg.NodeID, Node: c.cfg.NodeName, Type: EventClusterCleanup, Success: true, Details: details})
		return nil
	})
	return res, err
}

// anyRecords reads the rows from the local node, from the first host of conninfo that answers,
// or from the state file of this node's Monitor.
func (c *Cluster) anyRecords(ctx context.Context) ([]Record, error) {
	recs, err := c.Nodes(ctx)
	if err == nil && len(recs) > 0 {
		return recs, nil
	}
	if kept := c.savedRecords(); len(kept) > 0 {
		return kept, nil
	}
	if err == nil {
		err = hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	return nil, err
}
