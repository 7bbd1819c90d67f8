package pgfollow

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Standbys says which standbys a pool of [Follower.AttachStandbys] uses.
type Standbys struct {
	// MaxLag is how many bytes of WAL a standby may lack of what the primary had, by what both said
	// last, up to [Interval] apart: what the primary writes in that time is no lag that could be seen.
	// 0: any number.
	MaxLag int64
	// OrPrimary: the primary is used while no standby will do. Otherwise a connection is waited for, as
	// long as [Hold] says.
	OrPrimary bool
}

// StandbyPool makes a pool of connections to standbys, with the settings of the connection string.
func (f *Follower) StandbyPool(ctx context.Context, s Standbys) (*pgxpool.Pool, error) {
	cfg, err := f.poolConfig()
	if err != nil {
		return nil, err
	}
	f.AttachStandbys(cfg, s)
	return pgxpool.NewWithConfig(ctx, cfg)
}

// AttachStandbys is [Follower.Attach] for a pool of connections to standbys, each to one chosen at
// random. A connection whose standby lags too much, or was promoted, is not handed out any more.
func (f *Follower) AttachStandbys(cfg *pgxpool.Config, s Standbys) {
	f.attach(cfg, &route{
		standbys: true,
		choose: func(ctx context.Context) (present, error) {
			for began := time.Now(); ; {
				if p, ok := f.standby(s); ok {
					return p, nil
				}
				select {
				case <-ctx.Done():
					return present{}, f.noPrimary(ctx, began)
				case <-time.After(searchInterval):
				}
			}
		},
		serves: func(o origin) bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.state.suits(o.node, s) && o.generation == f.state.origin(o.node)
		},
	})
}

// standby chooses a node at random.
func (f *Follower) standby(s Standbys) (p present, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []int
	for i := range f.state.nodes {
		if f.state.suits(i, s) {
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		return present{}, false
	}
	node := all[rand.N(len(all))]
	return present{node: node, generation: f.state.origin(node)}, true
}

// suits reports whether a node will do.
func (s *state) suits(node int, o Standbys) bool {
	most := o.MaxLag
	if most <= 0 {
		most = math.MaxInt64
	}
	if lag, ok := s.lag(node); ok {
		return lag <= most
	}
	if !o.OrPrimary || !s.up || node != s.current {
		return false
	}
	for i := range s.nodes {
		if lag, ok := s.lag(i); ok && lag <= most {
			return false
		}
	}
	return true
}

type afterKey struct{}

// After makes what is read with the context that it returns, over a pool of standbys, see everything
// that was written before lsn, a position of [Position]: a connection is handed out when its standby
// has replayed that. The wait ends with an error after [Hold], also where the standby says nothing.
func After(ctx context.Context, lsn string) context.Context {
	return context.WithValue(ctx, afterKey{}, lsn)
}

// Position is the position of the WAL on the primary, for [After]. Ask after the commit. It means nothing
// after a failover, on another primary.
func Position(ctx context.Context, primary interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
},
) (lsn string, err error) {
	if err = primary.QueryRow(ctx, `SELECT pg_catalog.pg_current_wal_insert_lsn()::text`).Scan(&lsn); err != nil {
		return "", err
	}
	var high, low uint32
	if _, err := fmt.Sscanf(lsn, "%X/%X", &high, &low); err != nil {
		return "", fmt.Errorf("parse the position %q: %w", lsn, err)
	}
	if in := low % 8192; in == 24 || in == 40 { // at the beginning of a page there is only its header, which nobody replays by itself
		low -= in
	}
	return fmt.Sprintf("%X/%X", high, low), nil
}

// caughtUp waits until the server has replayed what the context asks for.
func (f *Follower) caughtUp(ctx context.Context, c *pgx.Conn) error {
	lsn, ok := ctx.Value(afterKey{}).(string)
	if !ok {
		return nil
	}
	held, cancel := f.held(ctx)
	defer cancel()
	for {
		var replayed bool
		err := c.QueryRow(held, `SELECT coalesce(NOT pg_catalog.pg_is_in_recovery() OR pg_catalog.pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)`, lsn).Scan(&replayed)
		if replayed || err != nil && held.Err() == nil {
			return err
		}
		select {
		case <-held.Done():
			return fmt.Errorf("%s has not replayed %s: %w", c.Config().Host, lsn, context.Cause(held))
		case <-time.After(searchInterval / 4):
		}
	}
}
