// Package outbox holds the events of one daemon until they are where they belong: with the
// notifiers, and in the table repmgr.events of a primary.
//
//	Add ─┬─ the queue of notifications ── Deliver, one at a time, in order
//	     └─ events that no primary has taken yet ── a primary, when one is at hand
//	                                             └─ a file of the data directory until then
//
// Add waits for nothing: neither a slow notifier nor a disk that does not answer holds up
// who reports an event. While the process runs no notification is lost. Of the events for
// the table the newest 100 are kept, over the end of the process too; for those that gave
// way there is one event that counts them. An event is written once, also where a daemon
// died before it knew that it was written.
package outbox
