// Package salvage reads the data directory of a server that is down, and saves what a rewind
// is about to take back: its vote, which timeline its WAL is on and where that ends, whether it is one
// log with another server's, and the WAL behind a fork, with what pg_waldump says of it.
//
// Nothing of the server is changed but by [Server.ReturnWAL], [Server.RestoreConfig] and the
// note of [Server.MarkOwnWAL]. A directory of saved WAL appears under its name only when it
// is whole, so every step can be repeated after an error or a crash.
package salvage
