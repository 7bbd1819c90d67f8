// Package follow points a standby to its upstream: whether it may follow it, which the
// timelines and the WAL of both say, how it logs in there, and whether it streams.
//
// What it finds before anything is changed is an error, with the command that an operator
// can run instead. [Move.Repoint] changes all settings under the lock of the vote or none
// of them, so that a standby that has pledged itself to a newer term stays where it is.
// [Move.AwaitStreaming] ends with its deadline, and changes nothing.
package follow
