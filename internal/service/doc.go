// Package service controls what runs on this machine in the way that the operator has configured:
// the PostgreSQL server and the daemon, each by a command of repmgr.conf, and the server also by
// pg_ctl where no command is set. It decides nothing: whether the server may be started as a
// primary is for its caller to find out.
package service
