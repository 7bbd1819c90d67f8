// Package fence keeps a PostgreSQL server from being a second primary, whatever else the
// daemon beside it is busy with.
//
//	heartbeat ── a sign of life, and the replies of the standbys: contact
//	lease ────── without contact to a majority of the voters for fence_timeout, the
//	             primary is stopped; so is what a dead postmaster has left behind
//	hang ─────── a primary that gives new connections no answer is stopped
//	device ───── where the machine itself hangs, the kernel's watchdog resets it
//	[Watchdog] ─ another process, which does the same where the daemon is stopped or dead
//
// To fence is to end every process of the server at once, which asks nothing of its disk.
// Then the data directory is marked as that of a standby without an upstream, and the server is
// started again as one. While those marks can not be written, whoever starts the server
// sees it ended again.
//
// When to stop is decided in package election ([election.LeaseStart]). A [Guard] takes its
// [Settings] again at a reload, sees the voters through a [voters.Watch], and says what it
// did to whoever made it. What could not be done is said once, and tried again.
package fence
