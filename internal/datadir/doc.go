// Package datadir makes the data directory of a clone: the copy is made in a staging
// directory inside it, and put in its place as the last act.
//
//	Open   look, and say why it can not be used; nothing is changed
//	Begin  make the staging directory; with force, old data goes here, pg_control first
//	Claim  note in the journal what is made, or filled, outside of it (tablespaces)
//	Commit move the copy up, pg_control at the very end
//	Abandon remove what is ours, and nothing else
//
// A process that dies at any point leaves nothing that can be started before the copy is
// whole, and whoever opens the directory next goes on with the journal: a move up that was
// begun is ended, and anything else of ours is removed.
package datadir
