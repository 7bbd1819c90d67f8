// Package coordinator holds one election and the takeover that follows: the failover itself.
// Which voters count, who wins, and whether it is safe are decided by package election, and
// docs/failover.md says why. Run never takes longer than its timeouts allow. The process may
// die at any step; this is what it leaves behind:
//
//	survey        nothing was changed
//	validate      nothing was changed
//	recruit       votes are stored, and the standbys that voted are detached from the primary.
//	              A primary that lives is confirmed in a higher term; else the next election,
//	              of a higher term, goes on from these votes
//	count         the same
//	drain         the same; a pause of the winner's replay is over
//	waitForFence  the same
//	tellWitnesses the same; the witnesses name a primary that still runs as a standby, which
//	              the next election replaces
//	promote       before the promotion: the winner knows that it has won, and its
//	              synchronous_standby_names acknowledges nothing; the next election goes on.
//	              After it: a primary without a rule, which opens its term by itself. With a
//	              quorum it acknowledges no commit until then
//	open          the rule is written: the daemon of the new primary puts its setting in force,
//	              and writes the rows of the nodes. Standbys are pointed to it by their own daemons
//
// With a quorum, the first commit that a client is told of is one that no later election can miss.
package coordinator
