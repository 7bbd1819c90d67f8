// Package manual holds the test that types the commands of the repmgr manual,
// as they are printed there, on four hosts of their own.
package manual
