// Package report says what is wrong with a node, from the state of the node that was read before:
// as findings with codes for programs, as the rows of a table, and as the checks of a monitoring
// system. It opens no connection and changes nothing.
package report
