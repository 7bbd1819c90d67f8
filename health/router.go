package health

import "time"

// Router is a program, or an address, through which clients reach the primary, and whether it took what the daemon told it last.
type Router struct {
	Kind        string    // haproxy, pgbouncer or vip; of a program of your own: other
	Destination string    // where it is told
	Name        string    // in a sentence
	Told        time.Time // when it last took what it was told; zero: never
	Failed      string    // why it did not take what it was told last; empty: it did, or was told nothing yet
}
