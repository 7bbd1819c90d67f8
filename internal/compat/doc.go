// Package compat holds the tests of what scripts and products around repmgr 5 call: each line as
// it is in the field, in a shell, against the built programs and real servers. What needs root is in
// the package debian below it: the init script of Debian, and pg_wrapper.
//
// Not here, because their other half can not be had on a test machine or is not built yet: Fly's agent, and
// check_patroni, whose paths and fields package web tests; what package surfaces tests; and the unit of the RPMs, with the variables REPMGRDCONF and PIDFILE and the drop-in of edb-ansible
// that sets them: it comes with our packages.
package compat
