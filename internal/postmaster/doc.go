// Package postmaster controls the PostgreSQL server of one data directory on this machine:
// it finds, starts, stops and kills its processes, and writes the settings of a server that
// is down.
//
//	the server runs        -> Stop (clean shutdown), Fence (at once, no process is left)
//	the postmaster is dead -> KillChildren, for its remaining processes, which can still commit
//	the server is down     -> Detach (make it a standby without an upstream),
//	                          Mark (and note that it must be started again), Start
//
// It finds the processes that work in the directory by /proc, and does not rely on a
// connection. Fence reads nothing from the server's disk, because that may be what has failed,
// and returns nil only when no process is left. Every wait has a deadline. Settings are written
// so that after a crash either the old file or the new one is there.
package postmaster
