// Package trouble logs what does not work in a daemon that tries again and again: once when
// a trouble begins, once when its text changes, and once when it is over. A trouble has a
// name, such as "the heartbeat"; between those moments nothing is logged, however often it
// is reported. What nobody tries any more is forgotten without the claim that it works.
package trouble
