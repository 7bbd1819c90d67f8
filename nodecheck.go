package repmgr

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/internal/conffile"
	"github.com/pgrepmgr/repmgr/registry"
)

// CheckStatus is the outcome of a check, in the words of Nagios.
type CheckStatus string

const (
	CheckOK       CheckStatus = "OK"
	CheckWarning  CheckStatus = "WARNING"
	CheckCritical CheckStatus = "CRITICAL"
	CheckUnknown  CheckStatus = "UNKNOWN"
)

// ExitCode is the exit code of a Nagios plugin: 0, 1, 2 or 3.
func (s CheckStatus) ExitCode() int {
	switch s {
	case CheckOK:
		return 0
	case CheckWarning:
		return 1
	case CheckCritical:
		return 2
	}
	return 3
}

// CheckName names a check, as the option of repmgr node check does.
type CheckName string

const (
	CheckRole           CheckName = "role"
	CheckReplicationLag CheckName = "replication-lag"
	CheckArchiveReady   CheckName = "archive-ready"
	CheckUpstream       CheckName = "upstream"
	CheckDownstream     CheckName = "downstream"
	CheckSlots          CheckName = "slots"
	CheckMissingSlots   CheckName = "missing-slots"
	CheckDataDirectory  CheckName = "data-directory-config"
	CheckDaemon         CheckName = "repmgrd" // not one of the overview
)

// CheckResult is what a check of the local node found.
type CheckResult struct {
	Check   CheckName   `json:"check"`
	Status  CheckStatus `json:"status"`
	Details string      `json:"details"`
	Perf    string      `json:"perfdata,omitempty"` // as a Nagios plugin prints it behind "|"
}

// NodeChecks are the checks of the local node.
type NodeChecks struct {
	Record Record        `json:"node"`
	Checks []CheckResult `json:"checks"`
}

// checks are all checks, in repmgr's order. The report has what they need.
var checks = []struct {
	name  CheckName
	check func(context.Context, *Cluster, NodeReport) CheckResult
}{
	{CheckRole, checkRole},
	{CheckReplicationLag, checkLag},
	{CheckArchiveReady, checkArchive},
	{CheckUpstream, checkUpstream},
	{CheckDownstream, checkDownstream},
	{CheckSlots, checkSlots},
	{CheckMissingSlots, checkMissingSlots},
	{CheckDataDirectory, checkDataDirectory},
	{CheckDaemon, checkDaemon},
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
	for _, one := range checks {
		if one.name == name || name == "" && one.name != CheckDaemon {
			r := one.check(ctx, c, rep)
			r.Check = one.name
			all.Checks = append(all.Checks, r)
		}
	}
	return all, nil
}

func finding(s CheckStatus, format string, args ...any) CheckResult {
	return CheckResult{Status: s, Details: fmt.Sprintf(format, args...)}
}

func checkRole(_ context.Context, _ *Cluster, rep NodeReport) CheckResult {
	registered, runs := rep.Record.Role, rep.Status.Role()
	if registered == RoleWitness && !rep.Status.InRecovery {
		runs = RoleWitness
	}
	if registered != runs {
		return finding(CheckCritical, "node is registered as %s but running as %s", registered, runs)
	}
	return finding(CheckOK, "node is %s", runs)
}

// limits are the thresholds of a check.
func limits(n, warning, critical int) CheckStatus {
	switch {
	case n >= critical:
		return CheckCritical
	case n > warning:
		return CheckWarning
	}
	return CheckOK
}

func checkLag(_ context.Context, c *Cluster, rep NodeReport) CheckResult {
	warning, critical := int(c.cfg.ReplicationLagWarning.Seconds()), int(c.cfg.ReplicationLagCritical.Seconds())
	perf := func(lag int) string { return fmt.Sprintf("lag=%d;%d;%d", lag, warning, critical) }
	switch {
	case !rep.Status.InRecovery:
		r := finding(CheckOK, "N/A - node is %s", rep.Record.Role)
		r.Perf = perf(0)
		return r
	case rep.ReplicationLag < 0:
		return finding(CheckUnknown, "it can not be told how far behind the node is")
	}
	lag := int(rep.ReplicationLag.Seconds())
	r := finding(limits(lag, warning, critical), "%d seconds", lag).over(warning, critical)
	r.Perf = perf(lag)
	return r
}

// over names the threshold that was passed.
func (r CheckResult) over(warning, critical int) CheckResult {
	switch r.Status {
	case CheckCritical:
		r.Details += fmt.Sprintf(", critical threshold: %d", critical)
	case CheckWarning:
		r.Details += fmt.Sprintf(", warning threshold: %d", warning)
	}
	return r
}

func checkArchive(_ context.Context, c *Cluster, rep NodeReport) CheckResult {
	n, warning, critical := rep.ArchiveReady, c.cfg.ArchiveReadyWarning, c.cfg.ArchiveReadyCritical
	switch {
	case rep.Status.Settings.ArchiveMode == "off":
		n = 0
	case n < 0:
		return finding(CheckUnknown, "this login may not read archive_status: grant it pg_monitor")
	}
	r := finding(limits(n, warning, critical+1), "%d pending archive ready files", n).over(warning, critical) // as in repmgr, only more than critical is
	r.Perf = fmt.Sprintf("files=%d;%d;%d", n, warning, critical)
	return r
}

func checkUpstream(ctx context.Context, c *Cluster, rep NodeReport) CheckResult {
	r := rep.Record
	if !rep.Status.InRecovery {
		return finding(CheckOK, "N/A - node is %s", r.Role)
	}
	if rep.LostWAL != nil {
		return finding(CheckCritical, "%s can not go on: %s. %s", r, rep.LostWAL, rep.remedy)
	}
	local, err := c.connectLocal(ctx)
	if err != nil {
		return finding(CheckUnknown, "%v", err)
	}
	defer local.Close()
	recs, err := local.Records(ctx)
	up, ok := registry.ByID(recs, r.UpstreamID)
	switch {
	case err != nil:
		return finding(CheckUnknown, "%v", err)
	case !ok:
		return finding(CheckCritical, "no upstream node is registered for %s", r)
	}
	p := c.look(ctx, up)
	switch state := registry.Attachment(p.status, r.Name); {
	case p.err != nil && rep.Status.Receiver == nil:
		return finding(CheckCritical, "%s receives nothing, and its upstream node does not answer: %v", r, p.err)
	case p.err != nil:
		return finding(CheckUnknown, "unable to ask the upstream node: %v", p.err)
	case state == "streaming":
		return finding(CheckOK, "%s is attached to expected upstream %s", r, up)
	case state != "":
		return finding(CheckWarning, "%s is attached to expected upstream %s, in state %q", r, up, state)
	}
	return finding(CheckCritical, "%s is not attached to expected upstream %s", r, up)
}

func checkDownstream(_ context.Context, _ *Cluster, rep NodeReport) CheckResult {
	missing := len(rep.MissingChildren)
	attached := rep.Children - missing
	r := finding(CheckOK, "%d of %d downstream nodes attached", attached, rep.Children)
	switch {
	case missing > 0:
		r = finding(CheckCritical, "%d of %d downstream nodes not attached; missing: %s", missing, rep.Children, strings.Join(rep.MissingChildren, ", "))
	case rep.Children == 0:
		r = finding(CheckOK, "this node has no downstream nodes")
	}
	r.Perf = fmt.Sprintf("attached=%d, missing=%d", attached, missing)
	return r
}

func checkSlots(_ context.Context, _ *Cluster, rep NodeReport) CheckResult {
	all, inactive := 0, len(rep.InactiveSlots)
	for _, s := range rep.Status.Slots {
		if s.Physical && !s.Temporary {
			all++
		}
	}
	r := finding(CheckOK, "%d of %d physical replication slots are active", all-inactive, all)
	switch {
	case inactive > 0:
		r = finding(CheckCritical, "%d of %d physical replication slots are inactive: %s", inactive, all, strings.Join(rep.InactiveSlots, ", "))
	case all == 0:
		r = finding(CheckOK, "node has no physical replication slots")
	}
	r.Perf = fmt.Sprintf("slots=%d;%d", all, inactive)
	return r
}

func checkMissingSlots(_ context.Context, _ *Cluster, rep NodeReport) CheckResult {
	n := len(rep.MissingSlots)
	r := finding(CheckOK, "node has no missing physical replication slots")
	r.Perf = fmt.Sprintf("missing_slots=%d", n)
	if n > 0 {
		names := strings.Join(rep.MissingSlots, ",")
		r = finding(CheckCritical, "%d physical replication slots are missing: %s", n, strings.ReplaceAll(names, ",", ", "))
		r.Perf = fmt.Sprintf("missing_slots=%d;%s", n, names)
	}
	return r
}

func checkDataDirectory(_ context.Context, c *Cluster, rep NodeReport) CheckResult {
	ours, theirs := c.cfg.DataDirectory, rep.Status.Settings.DataDirectory
	switch {
	case theirs == "":
		return finding(CheckUnknown, "this login may not read data_directory: grant it pg_monitor")
	case ours == "":
		return finding(CheckOK, `"data_directory" is not configured, the server's is %q`, theirs)
	case ours == theirs || conffile.RealPath(ours) == conffile.RealPath(theirs):
		return finding(CheckOK, `configured "data_directory" is %q`, ours)
	}
	return finding(CheckCritical, `configured "data_directory" is %q, the server's is %q`, ours, theirs)
}

func checkDaemon(ctx context.Context, c *Cluster, rep NodeReport) CheckResult {
	local := rep.Record
	local.Conninfo = c.cfg.Conninfo
	p := c.look(ctx, local, askService)
	s := p.service
	switch {
	case p.err != nil:
		return finding(CheckUnknown, "repmgrd status unknown: %v", p.err)
	case s.Monitored == nil:
		return finding(CheckUnknown, "repmgrd status unknown: %s", s.ServiceError)
	case p.foreign == nil && !*s.Monitored:
		return finding(CheckCritical, "repmgrd not running")
	case p.foreign != nil && s.Monitor == nil && p.foreign.Paused, s.Paused != nil && *s.Paused:
		return finding(CheckWarning, "repmgrd running but paused")
	}
	return finding(CheckOK, "repmgrd running")
}
