// Package clone copies a running server into a directory and makes that a standby: the ways
// to copy (the backup protocol, rsync over ssh around a backup, a program of the user's),
// the checks before the first change, the slot that keeps the WAL, and the settings of the
// new standby. internal/datadir puts the copy in its place.
//
// A [Copier] writes nothing outside its job's directory but into directories that the job
// agreed to, leaves no process and no session behind, and returns when its context ends. It
// removes nothing: its caller does when it fails. The checks change nothing, and name
// everything that is wrong at once.
package clone
