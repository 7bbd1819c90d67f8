package repmgr

import (
	"context"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/report"
)

// DefaultConnectTimeout limits the time from the first packet to the answer to the first query of a
// connection, where conninfo has no connect_timeout.
const DefaultConnectTimeout = postgres.DefaultConnectTimeout

// StatementTimeout limits each statement on a server, so that no caller waits for a server that has
// stopped answering. It does not apply to statements that may take long: backups, the deletes of
// Cleanup, a checkpoint, and the first commit of a term, which waits for standbys and has the deadline of
// its election.
const StatementTimeout = postgres.StatementTimeout

// Reach says how a server answered an attempt to connect. A failover needs the difference: a host that
// refuses a connection is running, a host that does not answer may be cut off. The zero value means that
// no attempt was made.
type Reach = postgres.Reach

const (
	ReachOK          = postgres.ReachOK
	ReachRefused     = postgres.ReachRefused     // the host answers, but no server listens on the port
	ReachTimeout     = postgres.ReachTimeout     // no answer, or no complete answer
	ReachNoRoute     = postgres.ReachNoRoute     // the network reports that the host can not be reached
	ReachNoHost      = postgres.ReachNoHost      // the host name can not be resolved
	ReachStarting    = postgres.ReachStarting    // the server is starting up, shutting down or recovering
	ReachFull        = postgres.ReachFull        // the server accepts no more connections
	ReachRejected    = postgres.ReachRejected    // the server does not allow the login, the database or the address
	ReachNotPostgres = postgres.ReachNotPostgres // a program that is not PostgreSQL listens on the port
	ReachBroken      = postgres.ReachBroken      // an established connection was lost
)

// ConnectError is the error of a failed attempt to connect: errors.Is finds [ErrConnect] in it,
// and its Reach says how the server answered.
type ConnectError = postgres.ConnectError

// MinServerVersion is the oldest PostgreSQL that this package manages, as server_version_num.
const MinServerVersion = registry.MinServerVersion

// Node is one connection to one PostgreSQL server. It is not safe for concurrent use. The caller of
// [Connect] must close it.
type Node struct{ s *registry.Server }

// Connect opens a connection to the server that conninfo names, and waits for
// it no longer than its connect_timeout ([DefaultConnectTimeout] where it has
// none). The error is a [ConnectError].
func Connect(ctx context.Context, conninfo string) (*Node, error) {
	s, err := registry.Connect(ctx, "", conninfo)
	if err != nil {
		return nil, err
	}
	return &Node{s}, nil
}

// Close ends the connection. It may be called twice, and on nil.
func (n *Node) Close() {
	if n != nil && n.s != nil {
		n.s.Close()
	}
}

// Status reads the server's state in one statement.
func (n *Node) Status(ctx context.Context) (NodeStatus, error) { return n.s.Status(ctx) }

// CreateSlot makes a physical replication slot for the standby of that name, which keeps WAL from now on. A
// physical slot of that name that exists is used, unless another standby streams through it.
func (n *Node) CreateSlot(ctx context.Context, slot, standby string) (created bool, err error) {
	return n.s.CreateSlot(ctx, slot, standby)
}

// DropSlot removes a physical slot that is not in use. A missing slot is not an error.
func (n *Node) DropSlot(ctx context.Context, name string) (dropped bool, err error) {
	return n.s.DropSlot(ctx, name)
}

// NodeStatus is the state of a server, read in one statement. Fields that this login may not read are
// empty: membership in the role pg_monitor allows it to read them.
type NodeStatus = registry.NodeStatus

// WALReceiver is the row of pg_stat_wal_receiver.
type WALReceiver = registry.WALReceiver

// WALSender is a row of pg_stat_replication.
type WALSender = registry.WALSender

// Slot is a row of pg_replication_slots.
type Slot = registry.Slot

// Settings are the settings of a server that decide whether replication can work.
type Settings = registry.Settings

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
	self := rep.Record
	rep.Record.Conninfo = Redact(rep.Record.Conninfo)
	if rep.Status, err = local.Status(ctx); err != nil {
		return rep, err
	}
	// Each of these needs a privilege of its own; without it the value stays unknown.
	_ = local.Conn.QueryRow(ctx, `SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database`).Scan(&rep.DataBytes)
	rep.ArchiveReady = local.ArchiveReady(ctx)
	if rep.Status.InRecovery {
		rep.ReplicationLag = registry.Lag(rep.Status)
	}
	var above []Record // whom it may stream from
	for _, r := range recs {
		if rep.Status.InRecovery && r.ID != rep.Record.ID && (r.ID == rep.Record.UpstreamID || r.Role == RolePrimary && r.Active || rep.Status.Receiver == nil) {
			above = append(above, r)
		}
	}
	probes := append(c.survey(ctx, above), probe{Look: report.Look{Record: self, Status: rep.Status}})
	c.seekStuck(ctx, probes)
	report.NoteUpstream(&rep, probes[len(above)].Look, looks(probes))
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
		r := report.Check(one, rep, limits)
		if one == CheckDaemon {
			r = c.checkDaemon(ctx, rep)
		}
		r.Check = one
		all.Checks = append(all.Checks, r)
	}
	return all, nil
}

// checkDaemon asks the local server whether a daemon watches it, and acts.
func (c *Cluster) checkDaemon(ctx context.Context, rep NodeReport) CheckResult {
	local := rep.Record
	local.Conninfo = c.cfg.Conninfo
	p := c.look(ctx, local, askService)
	s := p.service
	switch {
	case p.Err != nil:
		return report.Found(CheckUnknown, "repmgrd status unknown: %v", p.Err)
	case s.Monitored == nil:
		return report.Found(CheckUnknown, "repmgrd status unknown: %s", s.ServiceError)
	case p.foreign == nil && !*s.Monitored:
		return report.Found(CheckCritical, "repmgrd not running")
	case p.foreign != nil && s.Monitor == nil && p.foreign.Paused, s.Paused != nil && *s.Paused:
		return report.Found(CheckWarning, "repmgrd running but paused")
	}
	return report.Found(CheckOK, "repmgrd running")
}
