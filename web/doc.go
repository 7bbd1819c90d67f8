// Package web answers HTTP for a [repmgr.Monitor]: health checks, JSON and metrics as the tools around
// PostgreSQL ask Patroni for them, and what only repmgr knows.
//
//	h := web.Handler(monitor, web.Options{})
//
// Health checks are answered from the memory of the Monitor in microseconds, without SQL, and are
// right within one heartbeat. Package health says what each answer promises. 200 is yes, 503 is no,
// and the body says why. Paths are matched as Patroni matches them: //primary, /primary/x and an
// unknown path are no reason for a redirect or a 404, which a load balancer would misread.
//
// A browser gets a dashboard at / and /ui, which is drawn from the same memory, and from the newest answers to the
// questions of /repmgr/v1/. It loads nothing from elsewhere.
//
// A request that changes something needs the token or a client certificate. What shows more than a
// health check does is for those, and for clients on the same machine.
//
// [Server] is the socket: limits of time, size and number, TLS, and requests without a Host header.
package web
