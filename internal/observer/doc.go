// Package observer is what a daemon sees of its own node in each turn: the state of the local
// server, the primary that a standby follows, and the rows of the cluster, of whose copies that
// of the primary counts.
//
// A look at a server has a deadline, and what does not answer in time is not there. Where the
// voters are watched, their open connections are borrowed for the turn, and given back at its
// end. A daemon without a node reads the rows from whoever answers.
package observer
