// Package packages holds the tests of our packages: what is in them, that two builds of them are the same, and what they do on
// a machine with Debian's repmgr 5, and on one that is laid out as RPMs do it. Those work in a copy of this machine, an
// overlay in memory, which is thrown away; with REPMGR_PACKAGES_CHROOT=1 in a bare Debian instead, which debootstrap makes.
package packages
