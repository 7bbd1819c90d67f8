package follow

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Move makes a running standby follow another upstream.
type Move struct {
	Node, Upstream  registry.Record
	Standby, Source *registry.Server // connections to the two, which the caller closes
	Login           Login
	Conninfo        string // how this process reaches Upstream
	Log             *slog.Logger
}

// Repoint makes the slot on the new upstream, where the node has one, and gives the standby
// its new primary_conninfo. It refuses where the standby has pledged itself to a newer term
// than the upstream knows.
func (m Move) Repoint(ctx context.Context) error {
	if m.Node.SlotName != "" {
		if _, err := m.Source.CreateSlot(ctx, m.Node.SlotName, m.Node.Name); err != nil {
			return err
		}
	}
	set, err := m.Login.Settings(m.Upstream, m.Node.Name, m.Node.SlotName)
	if err != nil {
		return err
	}
	var term int64
	if rules, err := m.Source.Rules(ctx); err == nil && len(rules) > 0 {
		term = rules[0].Term
	}
	err = m.Standby.WithBallot(ctx, func(b ballot.Ballot) error {
		if b.Term > term && term > 0 {
			return failure.WithHint(failure.Of(failure.ErrRefused, "%s has pledged itself to term %d, and %s is of term %d: it may have been deposed", m.Node, b.Term, m.Upstream, term),
				"An election is going on, or came to nothing. See repmgr service status; the daemons sort it out.")
		}
		return m.Standby.AlterSystem(ctx, set)
	})
	if postgres.SQLState(err) == postgres.CodeInsufficientPrivilege { // a login that may not read the ballots works without them
		return m.Standby.AlterSystem(ctx, set)
	}
	if err == nil {
		err = ballot.ResumeReplay(ctx, m.Standby.Conn)
	}
	return err
}

// ancestryAgain is the time after which a standby that does not stream is compared with its
// upstream again.
const ancestryAgain = time.Second

// AwaitStreaming waits until the upstream says that the standby streams, and the standby says
// that it streams on the upstream's timeline: on the way to a new timeline it first streams the
// rest of the old one. Where that takes longer, ancestry is called again: a standby that has
// diverged will never stream. ancestry nil: there is no such check.
func (m Move) AwaitStreaming(ctx context.Context, timeline wal.Timeline, ancestry func() error) error {
	host, port := senderAddress(m.Upstream.Conninfo)
	asked := time.Now()
	return m.Standby.Poll(ctx, func() (bool, error) {
		if ancestry != nil && time.Since(asked) >= ancestryAgain {
			asked = time.Now()
			if err := ancestry(); errors.Is(err, failure.ErrTimelineDiverged) {
				return false, err
			}
		}
		var arrived bool // a login that may not see this relies on the upstream alone
		if err := m.Standby.Conn.QueryRow(ctx, `SELECT coalesce(bool_and(coalesce(received_tli, $1) = $1 AND ($2 = '' OR coalesce(sender_host, $2) = $2) AND ($3 = 0 OR coalesce(sender_port, $3) = $3)), false)
			FROM pg_stat_wal_receiver`, int32(timeline), host, int32(port)).Scan(&arrived); err != nil {
			return false, m.Standby.QueryError("watch the WAL receiver", err)
		}
		if !arrived {
			return false, nil
		}
		var state *string
		err := m.Source.Conn.QueryRow(ctx, `SELECT min(state) FROM pg_stat_replication WHERE application_name = $1`, m.Node.Name).Scan(&state)
		if err != nil {
			return false, m.Source.QueryError("watch the WAL sender", err)
		}
		return state != nil && *state == "streaming", nil
	})
}

// senderAddress is how a WAL receiver will show the server of a conninfo. Empty and 0 where
// that is not known in advance.
func senderAddress(info string) (host string, port int) {
	params, err := conninfo.Parse(info)
	if err != nil || strings.Contains(params["host"]+params["port"], ",") {
		return "", 0
	}
	port, _ = strconv.Atoi(params["port"])
	return cmp.Or(params["host"], params["hostaddr"]), port
}
