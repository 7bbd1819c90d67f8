// Package registry reads and writes the metadata tables of a cluster on one of its servers:
// the nodes ([Record]), the rules by which a primary is elected, the failovers and events of
// the past, and the copy of the nodes and rules on a witness.
//
// Reading is safe on any server. A rule is written only if it is newer than all others, and is
// never changed; a writer that comes too late gets [ErrSuperseded]. Servers without these
// tables, with those of repmgr 5, and with those of another version are told apart, without an
// error in the server's log.
package registry
