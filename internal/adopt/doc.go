// Package adopt plans the take-over of a running cluster of the C repmgr 5: of its tables, with
// the same repmgr.conf and without a restart of PostgreSQL. Its daemons and ours never act
// beside each other, so those of repmgr 5 end first. The way back is open at any time: what is
// added here is not seen by repmgr 5.
package adopt
