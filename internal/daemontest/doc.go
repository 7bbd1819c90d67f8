// Package daemontest runs the built programs against real servers, for tests: a cluster whose nodes each have
// a repmgr.conf and a repmgrd, as an operator would have them.
package daemontest
