// Package pidfile says where a daemon writes its process ID, and which process that is.
// A pid file is evidence only: its number may be that of another process by now, so who
// needs to be sure asks the process too. What can not be read names no process.
package pidfile
