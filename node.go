package repmgr

import (
	"context"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// DefaultConnectTimeout bounds reaching a server, from the first packet to the
// answer of its first query, where conninfo has no connect_timeout of its own.
const DefaultConnectTimeout = postgres.DefaultConnectTimeout

// StatementTimeout bounds every statement on a server, so that one that stopped
// answering in the middle holds nobody. Exempt is what may rightly take long: backups,
// what Cleanup deletes, a checkpoint, and the first commit of a term, which waits for
// standbys and has the deadline of its election.
const StatementTimeout = postgres.StatementTimeout

// Reach says how a server answered an attempt to connect. It is evidence: a
// host that refuses is not a host that is silent. The zero value means not tried.
type Reach = postgres.Reach

const (
	ReachOK          = postgres.ReachOK
	ReachRefused     = postgres.ReachRefused     // the host answers, nothing listens there
	ReachTimeout     = postgres.ReachTimeout     // no answer, or one that never ended
	ReachNoRoute     = postgres.ReachNoRoute     // the network says that there is no way
	ReachNoHost      = postgres.ReachNoHost      // the name does not resolve
	ReachStarting    = postgres.ReachStarting    // starting up, shutting down or recovering
	ReachFull        = postgres.ReachFull        // every slot is taken
	ReachRejected    = postgres.ReachRejected    // the login, the database or the address is not allowed
	ReachNotPostgres = postgres.ReachNotPostgres // something else listens there
	ReachBroken      = postgres.ReachBroken      // an established connection ended
)

// ConnectError is a server that could not be reached: errors.Is finds it as [ErrConnect],
// and its Reach says how the server answered.
type ConnectError = postgres.ConnectError

// MinServerVersion is the oldest PostgreSQL that this package manages, as server_version_num.
const MinServerVersion = registry.MinServerVersion

// Node is one PostgreSQL server, over one connection. It is not safe for
// concurrent use; whoever called [Connect] closes it.
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

// CreateSlot makes a physical replication slot that keeps WAL from now on, for
// the standby of that name. An existing slot is taken as it is, unless it is
// logical or another standby streams through it.
func (n *Node) CreateSlot(ctx context.Context, slot, standby string) (created bool, err error) {
	return n.s.CreateSlot(ctx, slot, standby)
}

// DropSlot removes a physical slot that nobody uses. A missing slot is no error.
func (n *Node) DropSlot(ctx context.Context, name string) (dropped bool, err error) {
	return n.s.DropSlot(ctx, name)
}

// NodeStatus is what a server says of itself, read in one statement. Fields that this
// login may not read are empty: see the grants of pg_monitor.
type NodeStatus = registry.NodeStatus

// WALReceiver is the row of pg_stat_wal_receiver.
type WALReceiver = registry.WALReceiver

// WALSender is a row of pg_stat_replication.
type WALSender = registry.WALSender

// Slot is a row of pg_replication_slots.
type Slot = registry.Slot

// Settings are the settings of a server that decide whether replication can work.
type Settings = registry.Settings
