// Package router sends the clients of a cluster to its primary at the moment in which there is a new one: by the runtime
// socket of HAProxy, by the configuration and the console of PgBouncer, or by an address that moves to the
// primary.
//
//	routers, err := router.FromConfig(cfg)
//	routers.Run(ctx, monitor.View, log) // until ctx ends
//
// Each daemon tells its routers what it knows itself, which [health.View.Writer] says, from its memory. Nothing
// waits for a router: each has a goroutine of its own, and every word to it a deadline. A router that does not
// answer is tried again, once a second. What was told is not told again before it changes, so that the health
// checks of HAProxy have the last word.
//
// In a switchover PgBouncer holds the clients back while the primary changes: [Routers.HoldClients].
package router
