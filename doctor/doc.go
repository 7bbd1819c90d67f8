// Package doctor asks whether a failover, a switchover, a rejoin or a restart would work now, with
// each node as the next primary. [Read] gathers what a server says; [Examine] is a function of that
// and of what else is known: it opens no connection and changes nothing. Each check has an id that
// does not change, and a section of that name on the page docs/doctor.md.
package doctor
