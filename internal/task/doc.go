// Package task is the long actions of a daemon: an election, a rejoin. A task runs in a
// goroutine of its own beside the loop that has started it, and that loop learns of its end.
//
// A task is firm where it must not be ended half-way; one that only waits gives way to what
// is more urgent. End ends also a firm one, and waits for it: nothing is left running. The
// outcome is handed out once. The steps of an action are logged and kept by [LogStep].
package task
