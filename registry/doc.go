// Package registry is what a cluster has registered, as the tables of one of its servers say
// it: its nodes ([Record]), the rules by which a primary is elected, the failovers and events
// of the past, and the copy of the nodes and rules that a witness has.
//
// Reading is safe anywhere. A rule is only ever the newest, and never written anew: who
// comes late is told so. A server without these tables, with those of repmgr 5, and with
// those of another version are told apart, without an error in the server's log.
package registry
