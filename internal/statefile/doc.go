// Package statefile keeps, in a file of the data directory, what a node must know of its
// cluster while its own server is down: the registered nodes, the newest rules, whether the
// primary is guarded, and the newest vote that the node has given.
//
//	Keep     writes what its daemon knows, where that has changed
//	KeepVote compares the vote in the file with the one that the server has
//
// The server keeps its vote in the settings that ALTER SYSTEM writes, where a program or a
// person can remove it. A node that lost its vote could give another one in the same term,
// so a vote that is gone is written back, and until that is done the daemon says that it is
// lost. Other settings that vanish there are only reported, with what to do. Nothing here
// keeps a daemon from its work: what fails is reported, and tried again at the next call.
package statefile
