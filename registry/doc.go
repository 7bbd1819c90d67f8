// Package registry is what a cluster has registered, as the tables of one of its servers say
// it: its nodes ([Record]), and the rules by which a primary is elected.
//
// Reading is safe anywhere. A rule is only ever the newest, and never written anew: who
// comes late is told so. A server without these tables, with those of repmgr 5, and with
// those of another version are told apart, without an error in the server's log.
package registry
