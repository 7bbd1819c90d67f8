package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/wording"
)

// Operator is the coordinator of a rule that an operator's promotion has written.
const Operator = "operator"

// FailoverRecord is a completed failover, as a row of repmgr.failovers.
type FailoverRecord struct {
	Term        int64           `json:"term" db:"term"`
	FormerID    NodeID          `json:"former_primary_id,omitempty" db:"former_id"` // 0: there was none
	Former      string          `json:"former_primary,omitempty" db:"former"`       // empty: the node is not registered any more
	PrimaryID   NodeID          `json:"primary_id" db:"primary_id"`
	Primary     string          `json:"primary,omitempty" db:"primary_name"`
	Coordinator string          `json:"coordinator" db:"coordinator"` // the monitor that held the election: node name and PID
	Reason      election.Health `json:"reason" db:"reason"`           // the verdict on the former primary
	StartedAt   time.Time       `json:"started_at" db:"started_at"`
	Outage      time.Duration   `json:"outage_ns,omitempty" db:"outage"`      // from the last sign of life of the former primary until the new one's first commit; 0: not known
	LostBytes   *int64          `json:"lost_bytes,omitempty" db:"lost_bytes"` // WAL that the former primary was seen to have beyond the new one, which it may have had more of; nil: not known
	Steps       []FailoverStep  `json:"steps" db:"steps"`
}

// FailoverStep is one step of an election, with what was known at that moment.
type FailoverStep struct {
	Step     string        `json:"step"`
	After    time.Duration `json:"after_ns"` // since the start
	Evidence string        `json:"evidence"`
}

const failoversSQL = `
SELECT f.term, coalesce(f.former_primary_id, 0) AS former_id, coalesce(o.node_name, '') AS former, f.primary_id, coalesce(w.node_name, '') AS primary_name,
       f.coordinator, f.reason, f.started_at, coalesce((extract(epoch FROM f.outage) * 1e9)::bigint, 0) AS outage, f.lost_bytes, f.steps
  FROM repmgr.failovers f LEFT JOIN repmgr.nodes o ON o.node_id = f.former_primary_id LEFT JOIN repmgr.nodes w ON w.node_id = f.primary_id
 ORDER BY f.term DESC LIMIT nullif($1::int, 0)`

// Failovers returns the failovers that the server knows of, newest first, at most limit; 0 means
// all. There are none in the tables of repmgr 5.
func (n *Server) Failovers(ctx context.Context, limit int) ([]FailoverRecord, error) {
	if ok, err := n.HasSchema(ctx); !ok {
		return nil, err
	}
	rows, err := n.Conn.Query(ctx, failoversSQL, limit)
	if err != nil {
		return nil, n.QueryError("read repmgr.failovers", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[FailoverRecord])
	if err != nil {
		return nil, n.QueryError("read repmgr.failovers", err)
	}
	return all, nil
}

// StepTime is how long after the start a step of the failover was done; 0 means that it was not.
func StepTime(f FailoverRecord, step string) (d time.Duration) {
	for _, s := range f.Steps {
		if s.Step == step {
			d = s.After
		}
	}
	return d
}

// EndOf is when the last step of the failover was done.
func EndOf(f FailoverRecord) time.Time {
	if len(f.Steps) == 0 {
		return f.StartedAt
	}
	return f.StartedAt.Add(f.Steps[len(f.Steps)-1].After)
}

// Line says what happened, in one sentence.
func (f FailoverRecord) Line() string {
	text := fmt.Sprintf("Term %d, %s: %s took over from %s, because the %s.", f.Term, f.StartedAt.Local().Format(time.DateTime),
		NameOf(f.PrimaryID, f.Primary), NameOf(f.FormerID, f.Former), strings.TrimPrefix(string(f.Reason), "the "))
	if f.Outage > 0 {
		text += fmt.Sprintf(" There was no primary for %s.", wording.Duration(f.Outage))
	}
	return text + fmt.Sprintf(" The election was held by %s.", f.Coordinator)
}

// NameOf is the name of a node for a sentence about the past: id 0 means nobody, and a node
// without a name is no longer registered.
func NameOf(id NodeID, name string) string {
	switch {
	case id == 0:
		return "nobody"
	case name == "":
		return fmt.Sprintf("node %d, which is not registered any more", id)
	}
	return name
}

// String is the failover with its steps, and what was known in each.
func (f FailoverRecord) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, f.Line())
	switch lost := f.LostBytes; {
	case lost == nil:
	case *lost == 0:
		fmt.Fprintln(&b, "  As far as it was seen, the former primary had no WAL that the new one never got.")
	default:
		fmt.Fprintf(&b, "  The former primary was seen to have %s of WAL that the new one never got.\n", wording.Bytes(*lost))
	}
	for _, s := range f.Steps {
		fmt.Fprintf(&b, "  %8s  %-10s %s\n", wording.Duration(s.After), s.Step, s.Evidence)
	}
	return b.String()
}

// RecentFailovers counts the failovers that began in the last hour.
func (n *Server) RecentFailovers(ctx context.Context) (count int, err error) {
	err = n.Conn.QueryRow(ctx, `SELECT count(*) FROM repmgr.failovers WHERE started_at > now() - interval '1 hour' AND reason <> $1`, string(election.HealthHandedOver)).Scan(&count)
	return count, err
}

// ReplacedUnrecorded returns the primary that was in office before this one, as the rules tell, and when the first rule of this
// one was written, where no row of repmgr.failovers tells of that. 0: there is none, or an operator promoted this one, or it was over an hour ago.
func (n *Server) ReplacedUnrecorded(ctx context.Context, primary NodeID) (former NodeID, at time.Time, err error) {
	if ok, err := n.HasSchema(ctx); !ok {
		return 0, at, err
	}
	err = n.Conn.QueryRow(ctx, `SELECT former.primary_node_id, own.opened_at
		FROM (SELECT * FROM repmgr.rules WHERE primary_node_id <> $1 ORDER BY term DESC, seq DESC LIMIT 1) former,
			LATERAL (SELECT * FROM repmgr.rules WHERE (term, seq) > (former.term, former.seq) ORDER BY term, seq LIMIT 1) own
		WHERE own.opened_at > now() - interval '1 hour' AND own.coordinator <> $2
		AND NOT EXISTS (SELECT FROM repmgr.failovers WHERE term > former.term)`, int32(primary), Operator).Scan(&former, &at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, at, n.QueryError("look for a failover that was not recorded", err)
	}
	return former, at, nil
}

// RecordFailover writes the row of a failover on the new primary. An existing row of the same
// term is not changed.
func (n *Server) RecordFailover(ctx context.Context, f FailoverRecord) error {
	if ok, err := n.HasSchema(ctx); !ok {
		return err
	}
	steps, err := json.Marshal(f.Steps)
	if err != nil {
		return err
	}
	_, err = n.Conn.Exec(ctx, `INSERT INTO repmgr.failovers (term, former_primary_id, primary_id, coordinator, reason, started_at, outage, steps, lost_bytes)
		VALUES ($1, $2, $3, $4, $5, $6, nullif(make_interval(secs => $7), '0'), $8, $9) ON CONFLICT (term) DO NOTHING`,
		f.Term, int32(f.FormerID), int32(f.PrimaryID), f.Coordinator, string(f.Reason), f.StartedAt, f.Outage.Seconds(), steps, f.LostBytes)
	if err != nil {
		return n.QueryError("record the failover", err)
	}
	return nil
}
