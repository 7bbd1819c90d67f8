// Package postgres opens connections to PostgreSQL servers and reports the outcome precisely.
//
// A connection attempt never takes longer than its connect_timeout. Each statement has a
// deadline ([StatementTimeout], unless its context is [Unlimited]). Every session sets all
// settings whose defaults could change its results or end it. A connection pooler in between
// is refused. A failed connection is a [ConnectError], whose [Reach] is evidence about the
// server: a host that refuses is alive, a silent one may not be. No error shows a password.
package postgres
