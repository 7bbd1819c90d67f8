// Package datadir creates the data directory of a clone. The copy is made in a staging
// directory inside it, and moved into place as the last step.
//
//	Open    checks the directory and says why it can not be used; nothing is changed
//	Begin   makes the staging directory; with force, deletes the old data, pg_control first
//	Claim   records in the journal a directory outside that is made or filled (a tablespace)
//	Commit  moves the copy into place, pg_control last
//	Abandon removes what this clone has made, and nothing else
//
// If the process dies at any point, nothing can be started before the copy is complete. The
// journal says what a killed clone has left behind, so that the next one can clear it away.
package datadir
