// Package streams tries whether the local server could stream from each node that may be
// promoted: a node that is promoted is of use only if the others can stream from it. So the
// daemon of each standby logs in for replication, as its server would, and says where that fails.
//
// Try makes the logins that are due: now and then, and at once when a server or its row is
// another one. Of a server that is down nothing is known, and nothing is said. Failed and
// Tell report the newest outcomes. They are evidence for people and for the choice of a
// candidate; a login that fails changes nothing.
package streams
