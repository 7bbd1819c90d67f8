package repmgr

import (
	"context"
	"slices"
	"sync"

	"github.com/pgrepmgr/repmgr/internal/follow"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// ClusterStatus is every registered node, as it is and as it should be.
type ClusterStatus = report.ClusterStatus

// NodeView is a registered node with what was seen of it.
type NodeView = report.NodeView

// LostWAL says why a standby can not go on: the server that it would stream from
// does not have the WAL any more that comes next.
type LostWAL = follow.LostWAL

// Finding is one thing that is wrong: Text is for people and may be reworded,
// Code stays what it is.
type Finding = report.Finding

// FindingCode names a kind of finding, for programs.
type FindingCode = report.FindingCode

const (
	FindingNoPrimary           = report.NoPrimary           // no registered node runs as the primary, and the registered one does not answer
	FindingTwoPrimaries        = report.TwoPrimaries        // more than one node runs as primary
	FindingDeposed             = report.Deposed             // it runs as primary, and another node is known to have taken its place
	FindingUnreachable         = report.Unreachable         // the server does not answer
	FindingRejected            = report.Rejected            // the server lives, and does not let us look: the login, its slots, or it starts
	FindingInactive            = report.Inactive            // it runs, and is registered as inactive
	FindingWrongRole           = report.WrongRole           // it does not run as what it is registered as
	FindingReplayPaused        = report.ReplayPaused        // WAL replay is paused
	FindingNotAttached         = report.NotAttached         // a standby does not receive from its upstream
	FindingNotStreaming        = report.NotStreaming        // it is attached, and has not caught up
	FindingWrongUpstream       = report.WrongUpstream       // it receives from another node than the registered one
	FindingUpstreamUnreachable = report.UpstreamUnreachable // it receives nothing, and its upstream does not answer
	FindingWALGone             = report.WALGone             // a standby needs WAL that its upstream does not have any more
	FindingDiverged            = report.Diverged            // a standby has WAL that its upstream never had
	FindingSlotLost            = report.SlotLost            // the slot of a standby is invalid: nothing streams through it
	FindingUpstreamCircle      = report.UpstreamCircle      // nodes are registered as each other's upstream

	FindingNamesake          = report.Namesake          // another server streams under the name of a node
	FindingName              = report.Name              // a name that PostgreSQL reads differently
	FindingNoReceiver        = report.NoReceiver        // of node status: no WAL receiver runs
	FindingDownstreamMissing = report.DownstreamMissing // registered downstream nodes are not attached
	FindingSlotsMissing      = report.SlotsMissing      // slots of registered downstream nodes are not there
	FindingSlotsInactive     = report.SlotsInactive     // slots that nobody uses keep WAL
	FindingDaemonMissing     = report.DaemonMissing     // no repmgrd runs, where failover is automatic
	FindingDaemonTrouble     = report.DaemonTrouble     // what a repmgrd says of its own trouble
	FindingRouterFailing     = report.RouterFailing     // a router does not take what a repmgrd tells it
	FindingSecondDaemon      = report.SecondDaemon      // a second repmgrd of one node runs, which changes nothing
	FindingDaemonSilent      = report.DaemonSilent      // a repmgrd has said nothing for long
	FindingDaemonUnknown     = report.DaemonUnknown     // what runs there could not be read
	FindingLeaseRunsOut      = report.LeaseRunsOut      // a primary has no contact to a majority, and is about to be stopped, or should have been
	FindingCanNotFence       = report.CanNotFence
	FindingNoPledge          = report.NoPledge       // its vote can not be stored or read
	FindingNoStream          = report.NoStream       // it could not log in for replication to a node that may be promoted
	FindingForeignDaemon     = report.ForeignDaemon  // daemons of repmgr 5 run beside ours
	FindingPaused            = report.Paused         // until somebody unpauses it
	FindingMixedFailover     = report.MixedFailover  // automatic on some nodes, manual on others
	FindingCanNotFailOver    = report.CanNotFailOver // too few votes, or no standby
)

// Status looks at all registered nodes at once and compares what it sees with what is
// registered: on the primary where there is one, else in the local copy. It takes no longer
// than the slowest answer, and no longer than one connect_timeout.
func (c *Cluster) Status(ctx context.Context) (ClusterStatus, error) {
	probes, err := c.probeNodes(ctx)
	if err != nil {
		return ClusterStatus{}, err
	}
	return report.Compare(looks(probes)), nil
}

// probeNodes looks at all nodes that the primary, or else the local node, has registered.
func (c *Cluster) probeNodes(ctx context.Context, ask ...followUp) ([]probe, error) {
	recs, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	probes := c.survey(ctx, recs, ask...)
	found := slices.DeleteFunc(primaries(probes), func(p report.Look) bool { return report.DeposedReason(p, looks(probes)) != "" })
	if len(found) == 1 && len(found[0].Rows) > 0 {
		probes = c.withPrimaryRows(ctx, probes, found[0].Rows, ask)
	}
	c.seekStuck(ctx, probes)
	return probes, nil
}

// withPrimaryRows replaces the rows of a copy, which may be old, by those of the primary. It
// looks only at the nodes that are new, or have another address, in the primary's rows.
func (c *Cluster) withPrimaryRows(ctx context.Context, probes []probe, recs []Record, ask []followUp) []probe {
	var missing []Record
	fresh := make([]probe, len(recs))
	for i, r := range recs {
		at := slices.IndexFunc(probes, func(p probe) bool { return p.Record.ID == r.ID && p.Record.Conninfo == r.Conninfo })
		if at < 0 {
			missing = append(missing, r)
			continue
		}
		fresh[i] = probes[at]
		fresh[i].Record = r
	}
	for _, p := range c.survey(ctx, missing, ask...) {
		fresh[slices.IndexFunc(recs, func(r Record) bool { return r.ID == p.Record.ID })] = p
	}
	return fresh
}

// seekStuck finds the standbys that receive nothing and never will again, and notes why in their
// probes. It looks at all of them at the same time.
func (c *Cluster) seekStuck(ctx context.Context, probes []probe) {
	ctx, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout)
	defer cancel()
	all, wg := looks(probes), sync.WaitGroup{}
	for i, p := range probes {
		up, ok := report.UpstreamOf(all, p.Record)
		if !ok || p.Err != nil || p.Record.Role != RoleStandby || registry.NextLSN(p.Status) == 0 || report.AttachedAnywhere(all, p.Record.Name) {
			continue
		}
		wg.Go(func() { probes[i].Apart, probes[i].Lost = c.whyStuck(ctx, p.Look, up, all) })
	}
	wg.Wait()
}

// whyStuck asks the upstream, and the standby itself, why that receives nothing.
func (c *Cluster) whyStuck(ctx context.Context, p, up report.Look, all []report.Look) (*follow.Divergence, *LostWAL) {
	n, err := c.connectTo(ctx, up.Record)
	if err != nil {
		return nil, nil
	}
	defer n.Close()
	if report.MayHaveDiverged(p, up, all) {
		half, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout/2)
		defer cancel()
		if local, err := c.connectTo(half, p.Record); err == nil {
			defer local.Close()
			if d := c.move(local, n, p.Record, up.Record).FindDivergence(half, p.Status); d != nil {
				return d, nil
			}
		}
	}
	return nil, follow.FindLostWAL(ctx, n, up.Record, p.Status)
}
