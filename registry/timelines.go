package registry

import (
	"context"

	"github.com/pgrepmgr/repmgr/ballot"
)

// TimelinesSetting is the server setting that tells every login, in every database, how the timelines of the newest
// rules followed each other: term/timeline/xid of each, the oldest first. xid is [election.Rule]'s FirstXid, and empty
// where it is not known, or where something that no rule tells lies between the two timelines. Package pgfollow reads it.
const TimelinesSetting = "repmgr.timelines"

// timelinesSQL counts a timeline from the first term that it is the timeline of. A rule without a line has timeline 0, of which nothing is known.
const timelinesSQL = `
WITH rule AS (SELECT DISTINCT ON (term) term, first_xid, coalesce((line ->> 'timeline')::int8, 0) AS timeline, (line -> 'past' -> -1 ->> 'timeline')::int8 AS came_from
	FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 50), told AS (SELECT *, lag(timeline) OVER (ORDER BY term) AS before FROM rule)
SELECT coalesce(string_agg(format('%s/%s/%s', term, timeline, CASE WHEN came_from = before THEN first_xid END), ' ' ORDER BY term), ''), coalesce(current_setting($1, true), '')
	FROM (SELECT * FROM told WHERE timeline IS DISTINCT FROM before ORDER BY term DESC LIMIT 10) t`

// TellTimelines brings [TimelinesSetting] up to date on a primary.
func (n *Server) TellTimelines(ctx context.Context) error {
	var value, now string
	if err := n.Conn.QueryRow(ctx, timelinesSQL, TimelinesSetting).Scan(&value, &now); err != nil {
		return n.QueryError("read the timelines of the rules", err)
	}
	if value == now {
		return nil
	}
	if err := n.MayAlterSystem(ctx, []string{TimelinesSetting}); err != nil {
		return err
	}
	if err := ballot.Store(ctx, n.Conn, TimelinesSetting, value); err != nil {
		return n.QueryError("set "+TimelinesSetting, err)
	}
	if _, err := n.Conn.Exec(ctx, `RESET `+TimelinesSetting); err != nil { // else this session would see the placeholder, and not the file
		return n.QueryError("set "+TimelinesSetting, err)
	}
	return n.Reload(ctx)
}
