package report

import (
	"fmt"
	"strings"
	"time"

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

// CheckResult is what a check of a node found.
type CheckResult struct {
	Check   CheckName   `json:"check"`
	Status  CheckStatus `json:"status"`
	Details string      `json:"details"`
	Perf    string      `json:"perfdata,omitempty"` // as a Nagios plugin prints it behind "|"
}

// Limits are the thresholds of the checks, and the configured data directory.
type Limits struct {
	LagWarning, LagCritical         time.Duration
	ArchiveWarning, ArchiveCritical int // files
	DataDirectory                   string
}

// CheckNames are all checks, in repmgr's order.
var CheckNames = []CheckName{CheckRole, CheckReplicationLag, CheckArchiveReady, CheckUpstream, CheckDownstream, CheckSlots, CheckMissingSlots, CheckDataDirectory, CheckDaemon}

// Check makes the check of that name. The report has what each check needs, except
// [CheckDaemon], for which the result is [CheckUnknown].
func Check(name CheckName, rep Node, l Limits) CheckResult {
	check, ok := map[CheckName]func(Node, Limits) CheckResult{
		CheckRole: checkRole, CheckReplicationLag: checkLag, CheckArchiveReady: checkArchive, CheckUpstream: checkUpstream, CheckDownstream: checkDownstream,
		CheckSlots: checkSlots, CheckMissingSlots: checkMissingSlots, CheckDataDirectory: checkDataDirectory,
	}[name]
	if !ok {
		return Found(CheckUnknown, "the report does not have what this check needs")
	}
	return check(rep, l)
}

// Found is the result of a check.
func Found(s CheckStatus, format string, args ...any) CheckResult {
	return CheckResult{Status: s, Details: fmt.Sprintf(format, args...)}
}

func checkRole(rep Node, _ Limits) CheckResult {
	registered, runs := rep.Record.Role, rep.Status.Role()
	if registered == registry.RoleWitness && !rep.Status.InRecovery {
		runs = registry.RoleWitness
	}
	if registered != runs {
		return Found(CheckCritical, "node is registered as %s but running as %s", registered, runs)
	}
	return Found(CheckOK, "node is %s", runs)
}

// severity compares a number with the thresholds of a check.
func severity(n, warning, critical int) CheckStatus {
	switch {
	case n >= critical:
		return CheckCritical
	case n > warning:
		return CheckWarning
	}
	return CheckOK
}

func checkLag(rep Node, l Limits) CheckResult {
	warning, critical := int(l.LagWarning.Seconds()), int(l.LagCritical.Seconds())
	perf := func(lag int) string { return fmt.Sprintf("lag=%d;%d;%d", lag, warning, critical) }
	switch {
	case !rep.Status.InRecovery:
		r := Found(CheckOK, "N/A - node is %s", rep.Record.Role)
		r.Perf = perf(0)
		return r
	case rep.ReplicationLag < 0:
		return Found(CheckUnknown, "how far behind the node is, is not known")
	}
	lag := int(rep.ReplicationLag.Seconds())
	r := Found(severity(lag, warning, critical), "%d seconds", lag).over(warning, critical)
	r.Perf = perf(lag)
	return r
}

// over adds the threshold that was exceeded to the details.
func (r CheckResult) over(warning, critical int) CheckResult {
	switch r.Status {
	case CheckCritical:
		r.Details += fmt.Sprintf(", critical threshold: %d", critical)
	case CheckWarning:
		r.Details += fmt.Sprintf(", warning threshold: %d", warning)
	}
	return r
}

func checkArchive(rep Node, l Limits) CheckResult {
	n, warning, critical := rep.ArchiveReady, l.ArchiveWarning, l.ArchiveCritical
	switch {
	case rep.Status.Settings.ArchiveMode == "off":
		n = 0
	case n < 0:
		return Found(CheckUnknown, "this login may not read archive_status: grant it pg_monitor")
	}
	r := Found(severity(n, warning, critical+1), "%d pending archive ready files", n).over(warning, critical) // as in repmgr, only more than critical is
	r.Perf = fmt.Sprintf("files=%d;%d;%d", n, warning, critical)
	return r
}

// checkUpstream tells whether the registered upstream sends to the node.
func checkUpstream(rep Node, _ Limits) CheckResult {
	r, up := rep.Record, rep.upstream
	state := registry.Attachment(up.Status, r.Name)
	switch {
	case !rep.Status.InRecovery:
		return Found(CheckOK, "N/A - node is %s", r.Role)
	case len(rep.stuck) > 0:
		return Found(CheckCritical, "%s", strings.Join(rep.stuck.Texts(), ""))
	case up.Record.ID == 0:
		return Found(CheckCritical, "no upstream node is registered for %s", r)
	case up.Err != nil && rep.Status.Receiver == nil:
		return Found(CheckCritical, "%s receives nothing, and its upstream node does not answer: %v", r, up.Err)
	case up.Err != nil:
		return Found(CheckUnknown, "unable to ask the upstream node: %v", up.Err)
	case state == "streaming":
		return Found(CheckOK, "%s is attached to expected upstream %s", r, up.Record)
	case state != "":
		return Found(CheckWarning, "%s is attached to expected upstream %s, in state %q", r, up.Record, state)
	}
	return Found(CheckCritical, "%s is not attached to expected upstream %s", r, up.Record)
}

func checkDownstream(rep Node, _ Limits) CheckResult {
	missing := len(rep.MissingChildren)
	attached := rep.Children - missing
	r := Found(CheckOK, "%d of %d downstream nodes attached", attached, rep.Children)
	switch {
	case missing > 0:
		r = Found(CheckCritical, "%d of %d downstream nodes not attached; missing: %s", missing, rep.Children, strings.Join(rep.MissingChildren, ", "))
	case rep.Children == 0:
		r = Found(CheckOK, "this node has no downstream nodes")
	}
	r.Perf = fmt.Sprintf("attached=%d, missing=%d", attached, missing)
	return r
}

func checkSlots(rep Node, _ Limits) CheckResult {
	all, inactive := 0, len(rep.InactiveSlots)
	for _, s := range rep.Status.Slots {
		if s.Physical && !s.Temporary {
			all++
		}
	}
	r := Found(CheckOK, "%d of %d physical replication slots are active", all-inactive, all)
	switch {
	case inactive > 0:
		r = Found(CheckCritical, "%d of %d physical replication slots are inactive: %s", inactive, all, strings.Join(rep.InactiveSlots, ", "))
	case all == 0:
		r = Found(CheckOK, "node has no physical replication slots")
	}
	r.Perf = fmt.Sprintf("slots=%d;%d", all, inactive)
	return r
}

func checkMissingSlots(rep Node, _ Limits) CheckResult {
	n := len(rep.MissingSlots)
	r := Found(CheckOK, "node has no missing physical replication slots")
	r.Perf = fmt.Sprintf("missing_slots=%d", n)
	if n > 0 {
		names := strings.Join(rep.MissingSlots, ",")
		r = Found(CheckCritical, "%d physical replication slots are missing: %s", n, strings.ReplaceAll(names, ",", ", "))
		r.Perf = fmt.Sprintf("missing_slots=%d;%s", n, names)
	}
	return r
}

func checkDataDirectory(rep Node, l Limits) CheckResult {
	ours, theirs := l.DataDirectory, rep.Status.Settings.DataDirectory
	switch {
	case theirs == "":
		return Found(CheckUnknown, "this login may not read data_directory: grant it pg_monitor")
	case ours == "":
		return Found(CheckOK, `"data_directory" is not configured, the server's is %q`, theirs)
	case ours == theirs || conffile.RealPath(ours) == conffile.RealPath(theirs):
		return Found(CheckOK, `configured "data_directory" is %q`, ours)
	}
	return Found(CheckCritical, `configured "data_directory" is %q, the server's is %q`, ours, theirs)
}
