// Package compat holds the tests of what scripts and products around repmgr 5 call: each line as
// it is in the field, in a shell, against the built programs and real servers.
//
// Not here, because their other half can not be had on a test machine or is not built yet: the
// HTTP checks of HAProxy, vip-manager, check_patroni and Fly's agent (there is no HTTP yet), and
// what a package installs: the init script and pg_wrapper of Debian, the unit of the RPMs.
package compat
