// Package chaos breaks real clusters and looks whether what was promised holds.
// It is black box: it drives the programs repmgr and repmgrd, PostgreSQL and
// etcd, and judges by what clients were told and what servers log.
package chaos
