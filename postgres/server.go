package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/wal"
)

// Server is a PostgreSQL server over one connection. It is not safe for concurrent use, and
// whoever opened it must close it.
type Server struct {
	Name     string // for messages
	Conninfo string // may hold a password: never printed
	Conn     *pgx.Conn
	Broke    error  // the error that ended the connection
	segment  uint32 // the size of its WAL segments; 0: not read yet
	Heeded   bool   // new settings are known to have an effect, while its ballot is locked

	pasts map[wal.Timeline]wal.History // the histories of its timelines that were read
	marks map[wal.Timeline]uint32      // the marks of its timelines that were read
}

// Close ends the connection. It may be called twice.
func (n *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = n.Conn.Close(ctx)
}

// IdleSQL says whether the replay of a standby waits for more WAL. The standby may still have
// WAL that it has not read: see [Server.LastRecordEnd].
const IdleSQL = `(SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
	AND wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) AS idle)`

// LastRecordEnd is the end of the last whole record of a standby that receives nothing. It
// lies between what the standby has replayed and what it has received. An incomplete last
// record does not count, because its rest never comes. whole is false where no record could
// be found. Where the login may not read the WAL, the result is received.
func (n *Server) LastRecordEnd(ctx context.Context, t wal.Timeline, replayed, received wal.LSN) (end wal.LSN, whole bool) {
	if received <= replayed {
		return received, true
	}
	size, err := n.WALSegmentSize(ctx)
	if err != nil {
		return received, true
	}
	for _, window := range []wal.LSN{64 << 10, 4 << 20, 64 << 20} {
		from, all := replayed, received-replayed <= window
		page := wal.PageStart(replayed)
		if !all {
			page = wal.PageStart(received - window)
		}
		log, ok := n.readLog(ctx, t, page, received, size)
		if !ok {
			return received, true
		}
		if !all {
			if from, ok = wal.FirstRecord(log, page, size); !ok {
				continue
			}
		}
		if !wal.IsPage(log, page) { // this WAL is in another file
			return received, true
		}
		if end := wal.LastRecordEnd(log[from-page:], from, size); all || end > from {
			return end, true
		}
	}
	return received, false
}

// readLog reads the WAL from the page at from up to to.
func (n *Server) readLog(ctx context.Context, t wal.Timeline, from, to wal.LSN, segSize uint32) (log []byte, ok bool) {
	for at := from; at < to; {
		want := min(int64(segSize)-int64(at)%int64(segSize), int64(to-at))
		part, err := n.readWAL(ctx, t, at, want, segSize)
		if err != nil || int64(len(part)) != want {
			return nil, false
		}
		log, at = append(log, part...), at+wal.LSN(want)
	}
	return log, true
}

// readWAL reads length bytes of one segment. The result is nil without an error where the
// server does not have the segment.
func (n *Server) readWAL(ctx context.Context, t wal.Timeline, at wal.LSN, length int64, segSize uint32) (part []byte, err error) {
	err = n.Conn.QueryRow(ctx, `SELECT pg_read_binary_file('pg_wal/' || $1, $2, $3, true)`, wal.SegmentName(t, at, segSize), int64(at)%int64(segSize), length).Scan(&part)
	return part, err
}

// WALSegmentSize is the size of the server's WAL segment files, in bytes.
func (n *Server) WALSegmentSize(ctx context.Context) (uint32, error) {
	if n.segment == 0 {
		if err := n.Conn.QueryRow(ctx, `SELECT pg_size_bytes(current_setting('wal_segment_size'))`).Scan(&n.segment); err != nil {
			return 0, n.QueryError("read wal_segment_size", err)
		}
	}
	return n.segment, nil
}

// QueryError names the purpose of the statement and the node. A lost connection becomes a
// [ConnectError], a refused statement does not.
func (n *Server) QueryError(purpose string, err error) error {
	if n.Conn.IsClosed() {
		n.Broke = err
	}
	if errors.Is(err, ballot.ErrUnreadable) {
		return failure.WithHint(failure.Of(failure.ErrQuery, "%s of %s: %w", purpose, n.Name, err), "Nobody but ALTER SYSTEM should write or remove that file. The login needs EXECUTE on pg_read_binary_file(text).")
	}
	switch SQLState(err) {
	case "":
		reach := Classify(err)
		if reach == ReachNotPostgres {
			reach = ReachBroken
		}
		return failure.WithHint(&ConnectError{Target: n.Name, Doing: purpose, Reach: reach, Err: err},
			"The server was there and stopped answering. Look at its process, its log and its disk, and at the network.")
	case CodeInsufficientPrivilege:
		return failure.WithHint(failure.Of(failure.ErrQuery, "%s of %s: %w", purpose, n.Name, err),
			"Connect as a superuser, or grant what is missing: docs/compat.md lists the grants of an unprivileged repmgr user.")
	case CodeUndefinedTable, CodeInvalidSchema:
		return failure.WithHint(failure.Of(failure.ErrNotRegistered, "%s of %s: there is no repmgr metadata in database %q", purpose, n.Name, n.Conn.Config().Database),
			"Run repmgr primary register on the primary first, with a conninfo that names this database.")
	default:
		return failure.Of(failure.ErrQuery, "%s of %s: %w", purpose, n.Name, err)
	}
}

// CreateSlot makes a physical replication slot that keeps WAL from now on, for
// the standby of that name. An existing slot is taken as it is, unless it is
// logical or another standby streams through it.
func (n *Server) CreateSlot(ctx context.Context, slot, standby string) (created bool, err error) {
	_, err = n.Conn.Exec(ctx, `SELECT pg_create_physical_replication_slot($1, true)`, slot)
	switch {
	case err == nil:
		return true, nil
	case SQLState(err) != CodeDuplicateObject:
		return false, n.QueryError(fmt.Sprintf("create slot %q", slot), err)
	}
	var physical, lost bool
	var user *string
	err = n.Conn.QueryRow(ctx, `SELECT s.slot_type = 'physical', CASE WHEN s.active THEN coalesce(r.application_name, '?') END, coalesce(s.wal_status = 'lost', false)
		FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = $1`, slot).Scan(&physical, &user, &lost)
	switch {
	case err != nil:
		return false, n.QueryError(fmt.Sprintf("look at slot %q", slot), err)
	case !physical:
		return false, failure.Of(failure.ErrRefused, "slot %q on %s is a logical slot", slot, n.Name)
	case user != nil && *user != standby:
		return false, failure.WithHint(failure.Of(failure.ErrRefused, "slot %q on %s is in use by %q", slot, n.Name, *user),
			"Is a second server running with the same node id?")
	case lost && user == nil: // its WAL is gone, so nobody can stream through it
		if _, err := n.DropSlot(ctx, slot); err != nil {
			return false, err
		}
		return n.CreateSlot(ctx, slot, standby)
	default:
		return false, nil
	}
}

// DropSlot removes a physical slot that nobody uses. A missing slot is no error.
func (n *Server) DropSlot(ctx context.Context, name string) (dropped bool, err error) {
	return n.dropSlot(ctx, name, `slot_type = 'physical'`)
}

// FormerSlotSQL is true for a logical slot with failover that a standby has of the time when it
// was the primary. A standby can make none itself, and while there is one of that name, it keeps
// no copy of the primary's.
const FormerSlotSQL = `(pg_is_in_recovery() AND coalesce((to_jsonb(s) ->> 'failover')::bool AND NOT (to_jsonb(s) ->> 'synced')::bool, false))`

// DropFormerSlot removes such a slot that nobody uses.
func (n *Server) DropFormerSlot(ctx context.Context, name string) (dropped bool, err error) {
	return n.dropSlot(ctx, name, FormerSlotSQL)
}

func (n *Server) dropSlot(ctx context.Context, name, condition string) (dropped bool, err error) {
	var gone *string
	err = n.Conn.QueryRow(ctx, `SELECT (SELECT pg_drop_replication_slot(slot_name)::text)
		FROM pg_replication_slots s WHERE slot_name = $1 AND `+condition+` AND NOT active`, name).Scan(&gone)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, n.QueryError(fmt.Sprintf("drop slot %q", name), err)
	default:
		return true, nil
	}
}

// DropIdleSlot is [Server.DropSlot] with an error where the slot stays because somebody uses it.
func (n *Server) DropIdleSlot(ctx context.Context, name string) (dropped bool, err error) {
	if dropped, err = n.DropSlot(ctx, name); err != nil || dropped {
		return dropped, err
	}
	stays, err := n.HasSlot(ctx, name)
	if err == nil && stays {
		err = errors.New("it is in use")
	}
	return false, err
}

// HasPromotedSlot reports whether the server has a logical slot that was the copy of another
// server's when this one was promoted, and can be used.
func (n *Server) HasPromotedSlot(ctx context.Context, name string) (there bool, err error) {
	err = n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots s WHERE slot_name = $1 AND slot_type = 'logical' AND NOT pg_is_in_recovery()
		AND (to_jsonb(s) ->> 'failover')::bool AND (to_jsonb(s) ->> 'synced')::bool AND to_jsonb(s) ->> 'invalidation_reason' IS NULL)`, name).Scan(&there)
	if err != nil {
		err = n.QueryError(fmt.Sprintf("look for slot %q", name), err)
	}
	return there, err
}

// HasSlot reports whether there is a slot of that name.
func (n *Server) HasSlot(ctx context.Context, name string) (there bool, err error) {
	if err = n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, name).Scan(&there); err != nil {
		err = n.QueryError(fmt.Sprintf("look for slot %q", name), err)
	}
	return there, err
}

// Address is where a conninfo points, without secrets, for messages.
func Address(conninfo string) string {
	cfg, err := ConnConfig(conninfo)
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%s port %d", cfg.Host, cfg.Port)
}

// MayPromote asks for the privilege before anything depends on it: on a standby
// nobody can grant it any more.
func (n *Server) MayPromote(ctx context.Context) error {
	var may bool
	if err := n.Conn.QueryRow(ctx, `SELECT has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE')`).Scan(&may); err != nil {
		return n.QueryError("look at the privileges", err)
	}
	if !may {
		return failure.WithHint(failure.Of(failure.ErrPromotion, "promote %s: user %q may not", n.Name, n.Conn.Config().User),
			"Connect as a superuser, or set service_promote_command. While there is a primary: GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO %s;", n.Conn.Config().User)
	}
	return nil
}

// AwaitPromotion waits until the server is out of recovery.
func (n *Server) AwaitPromotion(ctx context.Context) error {
	return n.Poll(ctx, func() (bool, error) {
		var inRecovery bool
		if err := n.Conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&inRecovery); err != nil {
			return false, n.QueryError("watch the promotion", err)
		}
		return !inRecovery, nil
	})
}

// Poll repeats done until it is true, and reloads the server's settings at intervals: see
// [NudgeInterval].
func (n *Server) Poll(ctx context.Context, done func() (bool, error)) error {
	begun := time.Now()
	nudge := begun.Add(NudgeInterval)
	for {
		ok, err := done()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case ok:
			return nil
		}
		if time.Now().After(nudge) {
			err := n.Reload(ctx)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil && !errors.Is(err, failure.ErrQuery):
				return err
			}
			nudge = time.Now().Add(NudgeInterval)
		}
		if err := PauseSince(ctx, begun); err != nil {
			return err
		}
	}
}

// PollInterval is how often a server is asked whether it is there yet.
const PollInterval = 5 * time.Millisecond

// PauseSince waits between two questions whether something that began then is over, and waits
// longer the longer that has taken. A promotion takes about 30 ms, so frequent questions cost
// less than a late answer.
func PauseSince(ctx context.Context, begun time.Time) error {
	return wait.Pause(ctx, min(max(time.Since(begun)/16, PollInterval/5), 4*PollInterval))
}

// NudgeInterval is how often a waiting server is told to reload its settings. After a promotion
// or a change of the upstream at the very moment when the old upstream dies, the startup process
// can sleep for seconds; a reload wakes it (measured: docs/compat.md, "Waits that a reload ends").
const NudgeInterval = 100 * time.Millisecond
