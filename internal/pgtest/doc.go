// Package pgtest runs real PostgreSQL servers inside tests, in a few hundred
// milliseconds each: primaries, standbys, a client that records what was
// acknowledged, dead ends of the network, and an sshd.
//
// A package that uses it hands over its TestMain:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestStandby(t *testing.T) {
//		t.Parallel()
//		primary := pgtest.Start(t, pgtest.Options{Name: "node1"})
//		standby := pgtest.NewStandby(t, primary, pgtest.Options{Name: "node2"})
//		...
//	}
//
// Main runs the tests in a child process: as the OS user postgres when it was
// started by root, because PostgreSQL refuses root. The child has a home and a
// TMPDIR of its own and no PG* variable. Whatever the child leaves behind, even
// by a panic or SIGKILL, its parent ends and removes; a run that passed but
// left a process running fails.
//
// Where TestMain belongs to somebody else, as in the packages that use repmgrtest,
// Guard does the most of that without it.
//
// Only _test.go files import this package, and repmgrtest. It needs Linux, and of
// PostgreSQL only initdb and postgres.
//
// # Environment
//
//   - REPMGR_PG_BINDIR: the directory of the server binaries. Defaults to that
//     of postgres in PATH, else to the newest of /usr/lib/postgresql/*/bin and
//     /usr/pgsql-*/bin, else to what pg_config says.
//   - REPMGR_TEST_TIMEOUT_SCALE: a factor for every deadline here. Defaults to 1.
//
// # Files
//
// All files of a run live under one directory, pgtest-N, and go with it. It is
// in TMPDIR, else in /dev/shm when that has 4 GiB free, else in /tmp. Beside it
// stays repmgr-pgtest-UID, with what initdb made, some 40 MB for each server
// version and set of initdb options: Start copies it. "make clean" removes it.
package pgtest
