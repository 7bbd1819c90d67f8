package repmgr

import (
	"context"

	"github.com/pgrepmgr/repmgr/internal/report"
	"github.com/pgrepmgr/repmgr/registry"
)

// NodeReport is the state of the local node: what it is, what it should be, and
// what is wrong.
type NodeReport = report.Node

// ReportRow is one line of the node status. Where Text is empty, only CSV has it.
type ReportRow = report.ReportRow

// NodeStatus reports on the local node.
func (c *Cluster) NodeStatus(ctx context.Context) (NodeReport, error) {
	local, err := c.connectLocal(ctx)
	if err != nil {
		return NodeReport{}, err
	}
	defer local.Close()
	recs, err := local.Records(ctx)
	if err != nil {
		return NodeReport{}, err
	}
	rep := NodeReport{
		DataBytes: -1, ArchiveReady: -1, ReplicationLag: -1,
		MissingSlots: []string{}, InactiveSlots: []string{}, MissingChildren: []string{}, Issues: []string{},
	}
	ok := false
	if rep.Record, ok = registry.ByID(recs, c.cfg.NodeID); !ok {
		return rep, registry.Unknown(recs, c.cfg.NodeID, "")
	}
	rep.Record.Conninfo = Redact(rep.Record.Conninfo)
	if rep.Status, err = local.Status(ctx); err != nil {
		return rep, err
	}
	// Each of these needs a privilege of its own; without it the value stays unknown.
	_ = local.Conn.QueryRow(ctx, `SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database`).Scan(&rep.DataBytes)
	_ = local.Conn.QueryRow(ctx, `SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'`).Scan(&rep.ArchiveReady)
	if rep.Status.InRecovery {
		rep.ReplicationLag = registry.Lag(rep.Status)
	}
	var above []Record // whom it may stream from
	for _, r := range recs {
		if rep.Status.InRecovery && (r.ID == rep.Record.UpstreamID || r.Role == RolePrimary && r.Active) {
			above = append(above, r)
		}
	}
	probes := append(c.survey(ctx, above), probe{record: rep.Record, status: rep.Status})
	c.seekLostWAL(ctx, probes)
	if lost := probes[len(above)].lost; lost != nil {
		report.LoseWAL(&rep, lost, remedy(*lost, rep.Record, probes))
	}
	report.Judge(&rep, recs)
	return rep, nil
}

// CheckStatus is the outcome of a check, in the words of Nagios.
type CheckStatus = report.CheckStatus

const (
	CheckOK       = report.CheckOK
	CheckWarning  = report.CheckWarning
	CheckCritical = report.CheckCritical
	CheckUnknown  = report.CheckUnknown
)

// CheckName names a check, as the option of repmgr node check does.
type CheckName = report.CheckName

const (
	CheckRole           = report.CheckRole
	CheckReplicationLag = report.CheckReplicationLag
	CheckArchiveReady   = report.CheckArchiveReady
	CheckUpstream       = report.CheckUpstream
	CheckDownstream     = report.CheckDownstream
	CheckSlots          = report.CheckSlots
	CheckMissingSlots   = report.CheckMissingSlots
	CheckDataDirectory  = report.CheckDataDirectory
	CheckDaemon         = report.CheckDaemon // not one of the overview
)

// CheckResult is what a check of the local node found.
type CheckResult = report.CheckResult

// NodeChecks are the checks of the local node.
type NodeChecks struct {
	Record Record        `json:"node"`
	Checks []CheckResult `json:"checks"`
}

// CheckNode checks the local node: the one check of that name, or, where name is
// empty, all but that of the daemon. It needs none of our tables, so it works
// with those of repmgr 5.
func (c *Cluster) CheckNode(ctx context.Context, name CheckName) (NodeChecks, error) {
	rep, err := c.NodeStatus(ctx)
	if err != nil {
		return NodeChecks{}, err
	}
	all := NodeChecks{Record: rep.Record, Checks: []CheckResult{}}
	limits := report.Limits{
		LagWarning: c.cfg.ReplicationLagWarning, LagCritical: c.cfg.ReplicationLagCritical,
		ArchiveWarning: c.cfg.ArchiveReadyWarning, ArchiveCritical: c.cfg.ArchiveReadyCritical, DataDirectory: c.cfg.DataDirectory,
	}
	for _, one := range report.CheckNames {
		if one != name && (name != "" || one == CheckDaemon) {
			continue
		}
		var r CheckResult
		switch one {
		case CheckUpstream:
			r = c.checkUpstream(ctx, rep)
		case CheckDaemon:
			r = c.checkDaemon(ctx, rep)
		default:
			r = report.Check(one, rep, limits)
		}
		r.Check = one
		all.Checks = append(all.Checks, r)
	}
	return all, nil
}

// checkUpstream asks the registered upstream whether it sends to the local node.
func (c *Cluster) checkUpstream(ctx context.Context, rep NodeReport) CheckResult {
	r := rep.Record
	if !rep.Status.InRecovery {
		return report.Found(CheckOK, "N/A - node is %s", r.Role)
	}
	if why := report.WhyLost(rep); why != "" {
		return report.Found(CheckCritical, "%s can not go on: %s", r, why)
	}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return report.Found(CheckUnknown, "%v", err)
	}
	defer local.Close()
	recs, err := local.Records(ctx)
	up, ok := registry.ByID(recs, r.UpstreamID)
	switch {
	case err != nil:
		return report.Found(CheckUnknown, "%v", err)
	case !ok:
		return report.Found(CheckCritical, "no upstream node is registered for %s", r)
	}
	p := c.look(ctx, up)
	switch state := registry.Attachment(p.status, r.Name); {
	case p.err != nil && rep.Status.Receiver == nil:
		return report.Found(CheckCritical, "%s receives nothing, and its upstream node does not answer: %v", r, p.err)
	case p.err != nil:
		return report.Found(CheckUnknown, "unable to ask the upstream node: %v", p.err)
	case state == "streaming":
		return report.Found(CheckOK, "%s is attached to expected upstream %s", r, up)
	case state != "":
		return report.Found(CheckWarning, "%s is attached to expected upstream %s, in state %q", r, up, state)
	}
	return report.Found(CheckCritical, "%s is not attached to expected upstream %s", r, up)
}

// checkDaemon asks the local server whether a daemon watches it, and acts.
func (c *Cluster) checkDaemon(ctx context.Context, rep NodeReport) CheckResult {
	local := rep.Record
	local.Conninfo = c.cfg.Conninfo
	p := c.look(ctx, local, askService)
	s := p.service
	switch {
	case p.err != nil:
		return report.Found(CheckUnknown, "repmgrd status unknown: %v", p.err)
	case s.Monitored == nil:
		return report.Found(CheckUnknown, "repmgrd status unknown: %s", s.ServiceError)
	case p.foreign == nil && !*s.Monitored:
		return report.Found(CheckCritical, "repmgrd not running")
	case p.foreign != nil && s.Monitor == nil && p.foreign.Paused, s.Paused != nil && *s.Paused:
		return report.Found(CheckWarning, "repmgrd running but paused")
	}
	return report.Found(CheckOK, "repmgrd running")
}
