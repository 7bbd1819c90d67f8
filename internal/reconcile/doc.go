// Package reconcile keeps what a promotion will need in step with what is there: on a primary
// the rule (whose votes count) and synchronous_standby_names (whom commits wait for), on a
// standby its slot, its archive and the setting that closes the time until a new term is open.
//
// Each step does at most one thing, from what was just seen, and the next one begins with a new
// look: whoever dies between two steps leaves nothing that the next one does not find. A setting
// that asks for more is believed only after a commit was seen to wait, and a rule counts as
// held only when no election can miss it. Which change is due is decided by package election.
package reconcile
