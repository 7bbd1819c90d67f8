// Package rejoin brings the server of a data directory back as a standby of a primary,
// whatever it was before.
//
//	Lock, FindLocal  no second rejoin, and what runs there
//	Compare          does it have WAL that the primary lacks?
//	Settle           follow, rewind or clone, and whether that can work; nothing is changed until here
//	Stop             no process of it is left
//	Rewind           save what it has too much, and take it back
//	Reclone          or save that, and copy everything anew
//	Start, Attach    as a standby, until it streams
//
// What a server has of its own is saved before it is taken back; without Force nothing is
// taken back that could not be saved. While its data is neither the old one nor the new one,
// PostgreSQL does not start on it. So after an error or a crash all of this is done again,
// from the beginning, and where pg_rewind was interrupted only a new clone helps.
//
// MendHistory prepares a primary for standbys that missed several promotions: it makes the WAL
// segments of earlier timelines that they still need. On a standby it replaces history files that
// a primary of a lost election has left.
package rejoin
