// Package clone copies a running server into a directory and makes the copy a standby. It has the
// ways to copy (the backup protocol, rsync over ssh during a backup, a command of the user), the
// checks before the first change, the slot that keeps the WAL, and the settings of the new standby.
// Package internal/datadir puts the copy in its place.
//
// A [Copier] writes only into the directory of its job and into directories that the job has
// allowed, leaves no process and no session behind, and returns when its context ends. It removes
// nothing: when it fails, its caller removes what was copied. The checks change nothing, and name
// everything that is wrong at once.
package clone
