package pgfollow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// sentinel watches one node over a connection of its own.
type sentinel struct {
	f    *Follower
	node int
	cfg  *pgx.ConnConfig
}

// lookSQL works for every login. A standby that is promoted in the middle says that it is one.
const lookSQL = `SELECT r.standby, pg_catalog.pg_postmaster_start_time(), (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
	CASE WHEN r.standby THEN '' ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END,
	pg_catalog.pg_wal_lsn_diff(CASE WHEN r.standby THEN coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0') ELSE pg_catalog.pg_current_wal_lsn() END, '0/0')::int8,
	coalesce(pg_catalog.current_setting('repmgr.ballot', true), ''),
	CASE WHEN $1::int8 = 0 OR pg_catalog.current_setting('server_version_num')::int >= 150000 THEN ` + resetSQL + ` ELSE $1 END
	FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby) r`

func (s *sentinel) run(ctx context.Context) {
	for rest := searchInterval; ctx.Err() == nil; {
		began := time.Now()
		err := s.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		s.f.see(s.node, look{err: err, at: time.Now()})
		if time.Since(began) > s.f.interval { // it was there
			rest = searchInterval
		}
		s.pause(ctx, rest+rand.N(rest))
		rest = min(2*rest, s.f.interval)
	}
}

// watch connects and asks the node until it does not answer any more. The error says why.
func (s *sentinel) watch(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, s.f.silence)
	defer cancel()
	conn, err := pgx.ConnectConfig(limited, s.cfg)
	if err != nil {
		return plain(err, s.f.silence)
	}
	defer s.hangUp(conn)
	reset := int64(0)
	for {
		l, err := s.ask(ctx, conn, reset)
		if err != nil {
			return plain(err, s.f.silence)
		}
		reset = l.reset
		s.f.see(s.node, l)
		if err := s.listen(ctx, conn); err != nil {
			return plain(err, s.f.silence)
		}
	}
}

// ask takes the reset that was known before, and asks again only where that is cheap.
func (s *sentinel) ask(ctx context.Context, conn *pgx.Conn, reset int64) (look, error) {
	ctx, cancel := context.WithTimeout(ctx, s.f.silence)
	defer cancel()
	l := look{at: time.Now()} // what it says may be as old as the question
	var segment, ballot string
	err := conn.QueryRow(ctx, lookSQL, reset).Scan(&l.standby, &l.started, &l.system, &segment, &l.lsn, &ballot, &l.reset)
	if err != nil || l.standby {
		return l, err
	}
	l.timeline, err = parseTimeline(segment)
	l.term = parseBallot(ballot)
	return l, err
}

// listen waits until the node is to be asked again. The end of the connection is an error, and comes at once.
func (s *sentinel) listen(ctx context.Context, conn *pgx.Conn) error {
	calm, most := s.f.rest()
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	defer context.AfterFunc(calm, cancel)()
	for ctx.Err() == nil {
		if err := conn.PgConn().WaitForNotification(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	if conn.IsClosed() {
		return errors.New("closed the connection")
	}
	return nil
}

func (s *sentinel) hangUp(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = conn.Close(ctx)
}

// pause waits for a moment, which grows, until a node that did not answer is tried again: many processes
// do that, and it may be about to recover.
func (s *sentinel) pause(ctx context.Context, most time.Duration) {
	calm, _ := s.f.rest()
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-calm.Done():
	case <-t.C:
	}
}

// plain says in a few words why a node did not answer.
func plain(err error, silence time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s", silence)
	}
	return err
}
