// Package router sends the clients of a cluster to its primary at the moment in which there is a new one: by the runtime
// socket of HAProxy, by the configuration and the console of PgBouncer, or by an address that moves to the
// primary.
//
//	routers, err := router.FromConfig(cfg, log)
//	cfg.HoldClients, cfg.RoutersFailing = routers.HoldClients(), routers.Failing
//	monitor, err := repmgr.NewMonitor(cfg)
//	go routers.Run(ctx, monitor.View) // until ctx ends, beside monitor.Run
//
// Each daemon tells its routers what it knows itself, which [health.View.Writer] says, from its memory. What is not
// known is not told. Nothing waits for a router: each has a goroutine of its own, and every word to it a deadline. A router that
// does not answer is tried again, once a second. What was told is not told again before it changes, or was out
// of sight, so that the health checks of HAProxy have the last word.
//
// Where an operator decides who is the primary (failover=manual), a daemon tells only of a change that it has seen: of the promotion
// of its own node, or of another primary that its standby follows. A former primary that is started again says nothing.
//
// In a switchover PgBouncer holds the clients back while the primary changes: [Routers.HoldClients].
package router
