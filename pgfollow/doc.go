// Package pgfollow lets a Go service follow the primary of a PostgreSQL cluster: a pool of connections
// that goes to the new primary as soon as there is one, hands out no connection to a former one, and
// waits for a limited time while there is none. It needs nothing but the connection string with all
// nodes, works for every login, and imports pgx only. It knows the terms of repmgr's elections, and
// follows every other cluster with physical replication by its timelines.
//
//	f, err := pgfollow.New("host=n1,n2,n3 dbname=app user=app")
//	defer f.Close()
//	pool, err := f.Pool(ctx)
//
// A [Follower] keeps one idle connection to each node and asks it twice a second, with one short
// statement. The end of the connection to the primary is noticed at once; then all nodes are asked
// every 20 ms until one of them says that it is the primary. What is refused: a node of another
// cluster, and a former primary that came back, which no target_session_attrs can tell from the real
// one. Connections to a node that is not the primary any more are cut, with whatever runs on them.
//
// A COMMIT that got no answer, because the primary was lost, has an outcome nevertheless:
//
//	err := pgfollow.Retry(ctx, pool, func(tx pgx.Tx) error { ... })
//	var unknown *pgfollow.CommitUnknownError
//	if errors.As(err, &unknown) {
//		outcome, why := pgfollow.OutcomeOf(ctx, pool, unknown.Transaction) // Committed, Aborted, Lost or Unknown
//	}
//
// One Follower serves as many pools as a service has. For database/sql: stdlib.OpenDBFromPool.
package pgfollow
