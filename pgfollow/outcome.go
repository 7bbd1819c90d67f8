package pgfollow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Outcome is what became of a transaction whose COMMIT was not answered.
type Outcome string

// The outcomes. An [Aborted] and a [Lost] transaction may be repeated.
const (
	Unknown   Outcome = "unknown"   // it can not be told
	Committed Outcome = "committed" // the primary has it
	Aborted   Outcome = "aborted"   // it was not committed, as far as the primary knows its end
	Lost      Outcome = "lost"      // its end never reached the primary: another one wrote it, which was lost
)

// Transaction is a transaction that [Identify] has asked for its id, for [OutcomeOf] in the same process.
type Transaction struct {
	Xid      uint64 // of pg_current_xact_id(); 0: it had written nothing
	Timeline uint32 // on which it was written
	Term     int64  // of repmgr's rule in which that timeline was begun; 0: not known

	on office
}

// office is one server from a start after a crash to the next, as one Follower knows it. Within it no
// transaction id is used twice. The zero value equals none that a Follower has seen.
type office struct {
	f     *Follower
	node  int
	reset int64 // when the server's statistics began, which they do anew when it recovers from a crash; 0: not known
}

// identifySQL works for every login, also on a standby, where nothing is written.
const identifySQL = `SELECT pg_catalog.pg_current_xact_id_if_assigned()::text::int8, ` + timelineSQL

const timelineSQL = `CASE WHEN pg_catalog.pg_is_in_recovery() THEN '00000000' ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END,
	coalesce(pg_catalog.current_setting('repmgr.timelines', true), '')`

// resetSQL changes with each recovery from a crash, also where the postmaster lived on. A change for
// another reason makes an outcome unknown, and nothing worse.
const resetSQL = `coalesce((extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::int8, 0)`

// proofSQL is a commit that waits for a standby, also where those of this login usually do not: what is set when it ends counts.
const proofSQL = `SELECT pg_catalog.pg_logical_emit_message(true, 'pgfollow'::text, ''::text),
	pg_catalog.set_config('synchronous_commit', CASE s WHEN 'remote_apply' THEN s ELSE 'on' END, true) FROM pg_catalog.current_setting('synchronous_commit') s`

// Identify asks a transaction of a pool of a [Follower] for its id. Call it after the last write and before COMMIT; [Retry] does that itself.
func Identify(ctx context.Context, tx pgx.Tx) (t Transaction, err error) {
	var on office
	var timeline uint32
	o, followed := originOf(tx.Conn())
	if followed {
		on, timeline = o.f.office() // before the question: its answer proves that the server has not crashed since
	}
	var xid *uint64
	var segment, setting string
	if err := tx.QueryRow(ctx, identifySQL).Scan(&xid, &segment, &setting); err != nil {
		return t, err
	}
	if xid != nil {
		t.Xid = *xid
	}
	if t.Timeline, err = parseTimeline(segment); err != nil {
		return t, err
	}
	if on.node == o.node && on.reset != 0 && timeline == t.Timeline {
		t.on = on
	}
	if all := parseTimelines(setting); len(all) > 0 && all[len(all)-1].timeline == t.Timeline {
		t.Term = all[len(all)-1].term
	}
	return t, nil
}

// opening is the begin of a timeline.
type opening struct {
	term     int64
	timeline uint32
	firstXid uint64 // of the transactions that are this timeline's, and not of the one before it; 0: not known
}

// parseTimelines reads repmgr's setting repmgr.timelines: term/timeline/xid of each, the oldest first. What can not be read makes all unknown.
func parseTimelines(setting string) (all []opening) {
	for text := range strings.FieldsSeq(setting) {
		parts := strings.Split(text, "/")
		if len(parts) != 3 {
			return nil
		}
		term, errTerm := strconv.ParseInt(parts[0], 10, 64)
		timeline, errTimeline := strconv.ParseUint(parts[1], 10, 32)
		xid, errXid := strconv.ParseUint(parts[2], 10, 64)
		if errTerm != nil || errTimeline != nil || errXid != nil && parts[2] != "" {
			return nil
		}
		all = append(all, opening{term, uint32(timeline), xid})
	}
	return all
}

// outcomeLimit is for how long an outcome is asked for where the caller has no deadline.
const outcomeLimit = 30 * time.Second

// OutcomeOf says what became of a transaction, by asking the primary over a connection of the pool. Until
// that is known it waits: for a primary, for the end of the transaction, for the setting that repmgrd writes on a
// new primary; until ctx ends, and 30 s at most. The error says why the outcome is [Unknown], and is nil otherwise.
//
// The answer is as durable as a commit with synchronous_commit=on that this primary acknowledges now: with
// repmgr's synchronous_mode=quorum no failover changes it. With off, a transaction that was acknowledged
// may be lost, and so may one of which it was said that it is committed.
//
// After a failover there is an answer where repmgrd runs the cluster. Without it, the transaction's
// primary must be the primary still.
func OutcomeOf(ctx context.Context, pool *pgxpool.Pool, t Transaction) (Outcome, error) {
	if t.Xid == 0 {
		return Unknown, errors.New("the transaction has no id: it had written nothing")
	}
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	var last error
	for {
		outcome, again, err := askOutcome(ctx, pool, t)
		if err == nil {
			return outcome, nil
		}
		if last == nil || ctx.Err() == nil || !again { // one that the end of the time cut off says less than the one before
			last = fmt.Errorf("the outcome of transaction %d is not known: %w", t.Xid, err)
		}
		if !again {
			return Unknown, last
		}
		select {
		case <-ctx.Done():
			return Unknown, last
		case <-time.After(searchInterval):
		}
	}
}

// askOutcome asks once. again: it may be known in a moment.
func askOutcome(ctx context.Context, pool *pgxpool.Pool, t Transaction) (_ Outcome, again bool, _ error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return Unknown, true, err
	}
	defer conn.Release()
	o, followed := originOf(conn.Conn())
	if !followed {
		return Unknown, false, errors.New("the pool is not one of a Follower")
	}
	on := office{f: o.f, node: o.node}
	var segment, setting string
	if err := conn.QueryRow(ctx, `SELECT `+resetSQL+`, `+timelineSQL).Scan(&on.reset, &segment, &setting); err != nil {
		return Unknown, true, err
	}
	timeline, err := parseTimeline(segment)
	if err != nil {
		return Unknown, false, err
	}
	outcome, again, err := judge(t, o.f.lastOffice(t.Timeline), on, timeline, parseTimelines(setting))
	if err != nil {
		return Unknown, again, err
	}
	if outcome == "" { // the number is that of our transaction here
		var status *string
		if err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_xact_status($1::text::xid8)`, strconv.FormatUint(t.Xid, 10)).Scan(&status); err != nil {
			return Unknown, true, err
		}
		switch {
		case status == nil:
			return Unknown, false, errors.New("the primary keeps no record of so old a transaction")
		case *status != string(Committed) && *status != string(Aborted):
			return Unknown, true, fmt.Errorf("it is %s", *status)
		}
		outcome = Outcome(*status)
	}
	// A commit of our own waits for what a commit can wait for, and what was seen here is older than it.
	if _, err := conn.Exec(ctx, proofSQL); err != nil {
		return Unknown, true, err
	}
	return outcome, false, nil
}

// judge says what the timelines tell of a transaction. last is the office in which its timeline was seen
// last; now, timeline and all are what the present primary says. Empty: its pg_xact_status tells the rest.
func judge(t Transaction, last, now office, timeline uint32, all []opening) (_ Outcome, again bool, _ error) {
	switch {
	case t.on.f == nil:
		return Unknown, false, errors.New("the server that wrote it was not known to the Follower of its pool")
	case timeline == t.Timeline && now == t.on:
		return "", false, nil
	case timeline <= t.Timeline, last != t.on:
		return Unknown, false, errors.New("its server was started anew after a crash, or another one has its timeline: its id may have been used again")
	case t.Term == 0:
		return Unknown, false, errors.New("repmgrd had not told in which term its timeline was begun")
	case len(all) == 0 || all[len(all)-1].timeline != timeline:
		return Unknown, true, errors.New("repmgrd has not told of the present timeline yet")
	}
	i := slices.IndexFunc(all, func(o opening) bool { return o.term == t.Term && o.timeline == t.Timeline })
	switch {
	case i < 0:
		return Unknown, false, fmt.Errorf("repmgrd does not tell what followed timeline %d of term %d", t.Timeline, t.Term)
	case i == len(all)-1 || all[i+1].firstXid == 0:
		return Unknown, false, fmt.Errorf("what had reached the primary that followed timeline %d of term %d is not known", t.Timeline, t.Term)
	case t.Xid >= all[i+1].firstXid:
		return Lost, false, nil
	}
	return "", false, nil
}
