// Package explain says what would happen if a node died now, and why, in data and in plain
// sentences. The functions that decide an election give the answer, so that it can not say
// something else than what would be done. It is made of what was seen: it asks nobody,
// changes nothing, and does not wait.
package explain
