// Package restart restarts the servers of a cluster, one after the other, on purpose. The daemon
// of each node restarts its own server, because it alone may stop it; nobody logs in to another
// machine. [Facts.Plan] says in which order, and what stands in the way; [Roll.Run] asks the
// daemons, one at a time, and waits until the node does again what it did before; [Work.Run] is
// what the daemon does.
//
// Nothing is decided here about who is the primary. A standby that is elected before its server is
// told to end is left as it is. A primary that is restarted in place is shut down in order, which
// is no ground for an election; where an election is held all the same, the server is started as a
// standby. A request that its daemon did not live to carry out is taken up by the next one, for a
// limited time.
//
// The events of the cluster are the journal: one says that the command has begun, with its nodes,
// one for each node that it was restarted, and one that all is done. A command that finds the
// first and not the last goes on where that ended.
package restart
