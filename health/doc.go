// Package health says, from what one Monitor remembers, whether its node may be written to or
// read from, and why not. It is what a load balancer needs to know several times a second.
//
// It has no effects: no SQL, no clock, no I/O. [View] is the memory, each method of it is an answer.
// A node says that it is the primary only while it was elected, no node of the cluster knows of a
// later election, its server has answered within silence_timeout, and its lease is in force. With
// synchronous_mode=off the lease ends before another node can be promoted. With quorum it ends when an election may
// begin; one that begins earlier, because a firewall refuses in the name of the primary, leaves that one unable to
// acknowledge a commit.
package health
