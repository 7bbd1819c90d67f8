package cli

// The exit codes of repmgr 5. Scripts know them by number.
const (
	ExitOK           = 0
	ExitConfig       = 1 // configuration, command line, or a condition that is not met
	ExitPidFile      = 3
	ExitNoRestart    = 4 // PostgreSQL could not be stopped or started
	ExitConnect      = 6
	ExitQuery        = 7
	ExitPromote      = 8
	ExitSystem       = 13
	ExitClone        = 14
	ExitLocalCommand = 5  // the command of node service failed
	ExitSwitchover   = 18 // a switchover was refused or given up
	ExitRegisterSync = 20

	ExitSwitchoverIncomplete = 22 // the new primary is there, and the old one does not stream from it yet
	ExitFollow               = 23
	ExitRejoin               = 24
	ExitIssues               = 25 // the answer is complete, and not all is well
	ExitPause                = 26 // pausing failed on a node; the others stay changed
	ExitDaemon               = 27 // the daemon did not start, or stop
	ExitSignalledBase        = 128
)
