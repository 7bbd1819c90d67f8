// Package compat holds the tests of what scripts and products around repmgr 5 call: each line as
// it is in the field, in a shell, against the built programs and real servers. What needs root is in
// the package debian below it: the init script of Debian, and pg_wrapper. The package packages installs our packages.
// What stands around a cluster is in package surfaces.
//
// Not here, because their other half can not be had on a test machine: Fly's agent, and
// check_patroni, whose paths and fields package web tests.
package compat
