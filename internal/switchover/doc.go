// Package switchover hands the role of the primary over to a standby, on purpose. The daemon of
// the primary carries it out, because it alone stops its server; nobody logs in to another
// machine. [Facts.Plan] says before what stands in the way; [Handover.Run] does it, in the steps
// of the plan.
//
// Nothing is decided here about who is the primary: that is an election like any other, held by
// the daemon of the old primary, after its server has ended and the target has all of its WAL.
// Other daemons were told, and leave the election to that one for a limited time. This is what a
// process leaves behind that dies after a step:
//
//	checked       nothing was changed; the next daemon takes the request back
//	checkpointed  the same
//	noticed       the primary goes on; the next daemon takes the notices back, and they are void once
//	              the primary was seen to go on when the time of the handover has passed
//	stopped       the other daemons hold an election when their time has passed. Where they are
//	              no majority, the next daemon of the old primary starts its server as a standby
//	              without an upstream, and has a vote again
//	received      the same
//	elected       an election of a higher term goes on from the votes, or the new primary is
//	              there; the next daemon of the old primary brings it back as a standby
//
// An error before the election starts the server again as the primary: nobody else can have been
// elected, because no voter has pledged itself.
package switchover
