// Package cli is what the command lines of repmgr and repmgrd have in common:
// where options may stand, what help looks like, how messages are printed, and
// what the exit codes mean.
package cli
