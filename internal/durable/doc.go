// Package durable writes files so that a crash of the machine leaves the old one or the new one, and tells
// whether one was written since.
package durable
