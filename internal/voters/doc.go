// Package voters watches all voters of a cluster at the same time, for a daemon or for one
// election: what each server runs as, where its WAL ends, which vote it has given, which
// rule it holds, and what its own daemon says.
//
//	Watch ── one Voter for each registered node ── a few connections that stay open
//	  │         asks once in a heartbeat interval: a glance, or a look when something changed
//	  └────── the arbiter, where there is one
//
// The death of a server is noticed when its kernel closes a connection, not when a question
// times out. A server that does not answer holds up nobody: each question has a deadline,
// and the views of the others stay fresh. What is reported is evidence: a port that refuses,
// a host that is silent, and a server that hangs are told apart, and no view is ever older
// than one that was reported before. An open connection may be borrowed, so that an
// election needs none of its own.
package voters
