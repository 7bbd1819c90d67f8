// Package coordinator holds one election and the takeover that follows: the failover itself.
//
//	survey ─ validate ─ recruit ─ count ─ replay ─ wait for the fence ─ tell the witnesses ─ promote ─ open the term
//
// Until recruit nothing is changed. From then on the voters that pledged themselves refuse the
// old term, whatever becomes of the election: a coordinator may die at any step, and the next
// election, of a higher term, goes on from what it finds. The winner is promoted only when a
// majority stands by it and a former primary can not acknowledge commits any more; with a
// quorum, the first commit that a client is told of is one that no later election can miss.
// Which voters count, who wins, and whether it is safe are decided by package election;
// docs/failover.md says why. Run never takes longer than its timeouts allow.
package coordinator
