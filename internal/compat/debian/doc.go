// Package debian holds the test of what Debian's packages of repmgr 5 put around the programs,
// with ours in their place: the init script, and pg_wrapper.
package debian
