// Package postgres opens connections to PostgreSQL servers, and says what came of it.
//
// A connection never waits longer than its connect_timeout, each statement has a deadline
// ([StatementTimeout], unless its context is [Unlimited]), and the session brings along every
// setting whose default could change what it does, or end it. A pooler between us and the
// server is refused. An error is a [ConnectError], whose [Reach] is evidence: a host that
// refuses is not a host that is silent. No error shows a password.
package postgres
