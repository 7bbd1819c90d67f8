// Package repmgrtest lets the tests of a Go service show that the service survives a failover. It starts a throw-away cluster of
// real PostgreSQL servers on this machine, whose primary is replaced as in production: by the Monitors of package repmgr, which run
// in the process of the tests.
//
//	func TestMyServiceSurvivesAFailover(t *testing.T) {
//		c := repmgrtest.Start(t, repmgrtest.Options{})
//		svc := startMyService(t, c.ConnString())
//		svc.mustWork(t)
//		c.KillPrimary(t)    // as a crash does
//		c.WaitForPrimary(t) // another node has taken over
//		svc.mustWork(t)
//		c.Switchover(t) // as for maintenance
//		svc.mustWork(t)
//	}
//
// A service that gets there by itself uses package pgfollow. Commits wait for a standby (synchronous_mode=quorum), so that no
// commit that was acknowledged may be missing afterwards.
//
// # What it needs
//
// Linux, and the programs of a PostgreSQL server, 13 or later: those in the directory that REPMGR_PG_BINDIR names, else those in PATH,
// else the newest in /usr/lib/postgresql/*/bin and /usr/pgsql-*/bin. Where something is missing, Start fails the test and says
// what; a test that would rather be skipped asks [Available].
//
// PostgreSQL refuses to run as root, as tests in containers often do. A package whose tests may be started by root has
//
//	func TestMain(m *testing.M) { repmgrtest.Main(m) }
//
// which then runs them as the OS user postgres.
//
// # What it leaves behind
//
// Nothing. Servers, Monitors and files end with the test; where the process of the tests is ended otherwise, by a panic, by -timeout,
// ctrl-C or SIGKILL, a small process that waits for that does it within seconds. The servers listen on free ports of 127.0.0.1, and
// on sockets in a temporary directory. Whoever may use this machine may connect to them while the tests run: they ask for no password.
//
// # Who may call what
//
// A Cluster belongs to the test that started it; subtests may use it, one at a time. Tests that run in parallel start a Cluster each.
// Every call that waits has a deadline of a minute, times REPMGR_TEST_TIMEOUT_SCALE where that is set. After it the test fails,
// with what was waited for, what each node does, and the end of each server's log.
package repmgrtest
