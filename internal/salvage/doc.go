// Package salvage reads the data directory of a server that is down, and saves the WAL that a
// rewind is about to discard. It reads the server's vote, finds out on which timeline its WAL
// is and where it ends, and whether it is the same log as that of another server. It saves the
// WAL behind a fork, together with the output of pg_waldump.
//
// Only [Server.RemoveUnchanged], [Server.ReturnWAL], [Server.RestoreConfig] and [Server.MarkOwnWAL]
// change anything in the data directory. A directory of saved WAL gets its final name only when it is complete,
// so every step can be repeated after an error or a crash.
package salvage
