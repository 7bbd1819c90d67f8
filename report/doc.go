// Package report says what is wrong with a node, from what was seen of it: as findings with
// codes for programs, as the rows of a table, and as the checks of a monitoring system. It
// asks nobody and changes nothing.
package report
