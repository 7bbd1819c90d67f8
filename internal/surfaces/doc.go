// Package surfaces holds the tests of what stands around a cluster: HAProxy, PgBouncer, a browser's view, and a
// service with pgfollow, around real nodes with a repmgrd each, while the primary is killed and switched over.
//
// Not here, because it can not be had on a test machine: vip-manager, of which Debian has a version that asks
// etcd and Consul only.
package surfaces
