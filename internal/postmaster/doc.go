// Package postmaster controls the PostgreSQL server of one data directory on this machine:
// it finds its processes, starts, stops and ends them, and writes the settings of a server
// that is down.
//
//	the server runs   -> Stop (in order), Fence (at once: no process of it is left)
//	a dead postmaster -> KillChildren, for what it left behind, which can still commit
//	it is down        -> Detach (a standby of nobody), Mark (and to be started again), Start
//
// It goes by the processes that work in the directory, in /proc, and not by what a connection
// says. Fence needs nothing of the server's disk, which may be what has failed, and returns
// nil only when no process is left. Every wait has a deadline. Settings are written so that
// a crash leaves the old file or the new one.
package postmaster
