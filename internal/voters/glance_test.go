package voters

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/registry"
)

// A glance shows everything that takes a look: ballots, pauses, rules, the end of
// a stream, a promotion. Where nothing changes it says so.
func TestGlance_ShowsWhatChanged(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	primary := pgtest.Start(t, pgtest.Options{})
	standby := pgtest.NewStandby(t, primary, pgtest.Options{})
	on := func(s *pgtest.Server) *session {
		n, err := registry.Connect(ctx, "", s.Conninfo())
		require.NoError(t, err)
		t.Cleanup(n.Close)
		return &session{Server: n}
	}
	p, s := on(primary), on(standby)
	schema, err := os.ReadFile("../../schema.sql")
	require.NoError(t, err)
	_, err = p.CreateSchema(ctx, string(schema))
	require.NoError(t, err)
	pgtest.WaitFor(t, "the schema on the standby", func(ctx context.Context) error { return s.NeedSchema(ctx) })
	known := map[*session]glance{}
	settle := func(n *session) {
		pgtest.WaitFor(t, "a glance like the one before", func(ctx context.Context) error {
			g, err := n.glance(ctx)
			old := known[n]
			known[n] = g
			if err == nil && !g.same(old) {
				err = errors.New("it differs")
			}
			return err
		})
	}
	for _, c := range []struct {
		what string
		on   []*session
		do   func() error
	}{
		{"a ballot on a primary", []*session{p}, func() error {
			return ballot.Pledge(ctx, on(primary).Conn, ballot.Ballot{Node: 1, Term: 3, Candidate: "a.1"}, ballot.Primary)
		}},
		{"a pause", []*session{p}, func() error { return on(primary).SetPaused(ctx, 1, true, election.Pause{Seq: 7}) }},
		{"a rule", []*session{p, s}, func() error {
			_, err := on(primary).Conn.Exec(ctx, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (3, 1, 1, '{1,2}', false, '{}', 0)`)
			return err
		}},
		{"a ballot on a standby", []*session{s}, func() error {
			return ballot.Pledge(ctx, on(standby).Conn, ballot.Ballot{Node: 2, Term: 4, Candidate: "a.1"}, ballot.Standby)
		}},
		{"a promotion", []*session{s}, func() error {
			_, err := on(standby).Conn.Exec(ctx, `SELECT pg_promote()`)
			return err
		}},
	} {
		for _, n := range c.on {
			if c.what != "a promotion" {
				settle(n)
			}
		}
		require.NoError(t, c.do(), c.what)
		for _, n := range c.on {
			pgtest.WaitFor(t, c.what+" to be noticed", func(ctx context.Context) error {
				g, err := n.glance(ctx)
				if err == nil && g.same(known[n]) {
					err = errors.New("the same as before")
				}
				return err
			})
		}
	}
	g, err := s.glance(ctx)
	require.NoError(t, err)
	require.NotNil(t, g.state, "it is a primary now")
	settle(s)
}
