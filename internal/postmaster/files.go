package postmaster

// Files of ours in a data directory, which are one node's own: a clone drops them.

// FencedMark is the file, in the data directory, that says that the Monitor
// stopped this server and has to start it again, as a standby of nobody: a Monitor
// that dies in between goes on with it.
const FencedMark = "repmgr_fenced"

// RejoinMark is the file, in the data directory, that says that a rejoin was begun
// and has not succeeded.
const RejoinMark = "repmgr_rejoining"

// NodesFile is the file, in the data directory, that keeps what must be known of the cluster while the server is down.
const NodesFile = "repmgr_nodes.json"

// EventsFile is the file, in the data directory, that keeps the events that no primary has taken yet.
const EventsFile = "repmgr_events.json"
