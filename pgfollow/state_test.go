package pgfollow

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

var (
	begin = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	gone  = look{err: errors.New("no answer"), at: begin}
	full  = look{err: &pgconn.PgError{Code: "53300"}, at: begin}
)

func primary(timeline uint32, term int64) look {
	return look{at: begin, system: "1", started: begin, timeline: timeline, term: term, lsn: 100}
}

func standby(lsn int64) look {
	return look{at: begin, system: "1", started: begin, standby: true, lsn: lsn}
}

func later(l look) look {
	l.at = begin.Add(time.Second)
	return l
}

// Who is followed, by what the nodes say one after the other. The node is -1 where there is none.
func TestState_See(t *testing.T) {
	t.Parallel()
	type step struct {
		node int
		says look
		want int
	}
	_, refused := pgconn.Connect(t.Context(), "host=/nonexistent user=x")
	stopped := look{err: refused, at: begin}
	for name, steps := range map[string][]step{
		"the first primary":                                {{1, standby(1), -1}, {0, primary(1, 0), 0}},
		"the primary is lost":                              {{0, primary(1, 0), 0}, {0, gone, -1}},
		"it comes back":                                    {{0, primary(1, 0), 0}, {0, gone, -1}, {0, primary(1, 0), 0}},
		"it becomes a standby":                             {{0, primary(1, 0), 0}, {0, standby(1), -1}},
		"another one is promoted":                          {{0, primary(1, 0), 0}, {0, gone, -1}, {1, primary(2, 0), 1}},
		"while the first one answers":                      {{0, primary(1, 0), 0}, {1, primary(2, 0), 1}},
		"a former primary comes back":                      {{0, primary(1, 0), 0}, {1, primary(2, 0), 1}, {0, primary(1, 0), 1}},
		"while there is none":                              {{0, primary(1, 0), 0}, {1, primary(2, 0), 1}, {1, gone, -1}, {0, primary(1, 0), -1}},
		"one of its timeline, promoted apart":              {{0, primary(2, 0), 0}, {0, gone, -1}, {1, primary(2, 0), -1}},
		"one of its timeline, and of a later term":         {{0, primary(2, 2), 0}, {1, primary(2, 3), 1}, {0, primary(2, 2), 1}},
		"a later term counts more than a timeline":         {{0, primary(3, 2), 0}, {1, primary(2, 3), 1}, {0, primary(3, 2), 1}},
		"promoted by hand, with the ballot of its source":  {{0, primary(4, 5), 0}, {0, gone, -1}, {1, primary(5, 3), 1}},
		"the same, while the primary is there":             {{0, primary(4, 5), 0}, {1, primary(5, 3), 0}},
		"reaffirmed, its ballot has no mark":               {{0, primary(3, 2), 0}, {1, primary(2, 3), 1}, {1, primary(2, 0), 1}, {0, primary(3, 2), 1}},
		"promoted after it was seen as a standby":          {{0, primary(2, 0), 0}, {1, later(standby(1)), 0}, {0, gone, -1}, {1, later(primary(2, 0)), 1}},
		"promoted by hand, without a ballot":               {{0, primary(4, 5), 0}, {1, primary(5, 0), 1}},
		"a node of another cluster":                        {{0, primary(1, 0), 0}, {1, look{system: "2", timeline: 9}, 0}, {0, gone, -1}, {1, look{system: "2", timeline: 9}, -1}},
		"a standby that is lost is not the primary's loss": {{0, primary(1, 0), 0}, {1, gone, 0}},
		"it has no connection left":                        {{0, primary(1, 0), 0}, {0, gone, -1}, {0, gone, -1}, {0, full, 0}, {0, full, 0}, {0, gone, -1}},
		"it was stopped before":                            {{0, primary(1, 0), 0}, {0, stopped, -1}, {0, full, -1}, {0, gone, -1}, {0, full, -1}, {0, primary(1, 0), 0}, {0, gone, -1}, {0, full, 0}},
		"it was a standby before":                          {{0, primary(1, 0), 0}, {0, standby(1), -1}, {0, full, -1}},
		"it was of another cluster before":                 {{0, primary(1, 0), 0}, {0, look{system: "2", timeline: 9}, -1}, {0, full, -1}},
		"it has none left, and another one is promoted":    {{0, primary(1, 0), 0}, {0, gone, -1}, {0, full, 0}, {1, primary(2, 0), 1}, {0, full, 1}},
		"the same, promoted by hand":                       {{0, primary(4, 5), 0}, {0, gone, -1}, {0, full, 0}, {1, primary(5, 3), 1}},
		"a standby has no connection left":                 {{0, primary(1, 0), 0}, {1, full, 0}, {0, gone, -1}, {1, full, -1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newState([]string{"a", "b"}, begin, 0)
			for i, step := range steps {
				s.see(step.node, step.says)
				is := -1
				if s.up {
					is = s.current
				}
				require.Equal(t, step.want, is, "step %d: %s", i+1, s.describe())
			}
		})
	}
}

// Connections stay where the same server is the primary again, and are stale where it is not the same.
func TestState_Generation(t *testing.T) {
	t.Parallel()
	s := newState([]string{"a", "b"}, begin, 0)
	require.True(t, s.see(0, primary(1, 0)))
	first := s.generation
	require.NotZero(t, first, "0 is that of connections to standbys")
	require.False(t, s.see(0, primary(1, 0)))
	require.True(t, s.see(0, gone))
	require.False(t, s.see(0, gone))
	require.True(t, s.see(0, primary(1, 0)))
	require.Equal(t, first, s.generation, "its connection was closed, and nothing else")
	s.see(0, gone)
	require.True(t, s.see(0, later(full)))
	require.Equal(t, first, s.generation, "it lives")
	_, ok := s.primary(begin.Add(2*time.Second), time.Second)
	require.True(t, ok, "that was a moment ago")
	restarted := primary(1, 0)
	restarted.started = begin.Add(time.Second)
	s.see(0, gone)
	require.True(t, s.see(0, restarted))
	require.Equal(t, first+1, s.generation)
	require.True(t, s.see(1, primary(2, 0)))
	require.Equal(t, first+2, s.generation)
	require.True(t, s.stale(0))
	require.Contains(t, s.describe(), "a: is a former primary; b: is the primary")
}

// What was said counts until a sentinel that is let in by nobody has had the time for its next attempt, and no longer.
func TestFollower_Fresh(t *testing.T) {
	t.Parallel()
	f := &Follower{interval: time.Hour, silence: time.Minute, closed: t.Context(), state: newState([]string{"a"}, begin, 0)}
	for ago, want := range map[time.Duration]bool{2*time.Hour + time.Minute: true, 2*time.Hour + 3*time.Minute: false} {
		l := primary(1, 0)
		l.at = time.Now().Add(-ago)
		f.state.see(0, l)
		p, _ := f.now()
		require.Equal(t, want, p.up, ago)
	}
}

// A former primary may be the first that answers, and a node of another cluster, too: the first choice waits for all nodes,
// but not for ever.
func TestState_Choose(t *testing.T) {
	t.Parallel()
	alien := look{at: begin, system: "2", started: begin, timeline: 9}
	for name, tc := range map[string]struct {
		says []look
		want int
	}{
		"a former primary is first":          {[]look{primary(1, 0), primary(2, 0), standby(1)}, 1},
		"it is last":                         {[]look{primary(2, 0), standby(1), primary(1, 0)}, 0},
		"by the term":                        {[]look{primary(3, 2), primary(2, 3), gone}, 1},
		"by the term, the other way round":   {[]look{primary(2, 3), primary(3, 2), gone}, 0},
		"a node of another cluster is first": {[]look{alien, standby(1), primary(1, 0)}, 2},
		"there is none":                      {[]look{gone, standby(1), gone}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newState([]string{"a", "b", "c"}, begin, time.Second)
			for i, l := range tc.says {
				require.False(t, s.up, "not every node was asked")
				s.see(i, l)
			}
			require.Equal(t, tc.want >= 0, s.up)
			require.Equal(t, tc.want, s.current)
		})
	}
	s := newState([]string{"a", "b"}, begin, time.Second)
	require.False(t, s.see(0, primary(1, 0)))
	require.True(t, s.see(0, later(primary(1, 0))), "the other one has had its time")
	_, ok := s.primary(begin.Add(2*time.Second), time.Second)
	require.True(t, ok)
	_, ok = s.primary(begin.Add(time.Minute), time.Second)
	require.False(t, ok, "that was long ago")
}

func TestState_Suits(t *testing.T) {
	t.Parallel()
	s := newState([]string{"a", "b", "c"}, begin, 0)
	s.see(1, standby(90))
	require.True(t, s.suits(1, Standbys{MaxLag: 1}), "there is no primary that it could be behind")
	s.see(0, primary(1, 0)) // at 100
	s.see(2, standby(40))
	for _, want := range []struct {
		node int
		o    Standbys
		ok   bool
	}{
		{1, Standbys{}, true},
		{2, Standbys{}, true},
		{0, Standbys{}, false},
		{1, Standbys{MaxLag: 10}, true},
		{2, Standbys{MaxLag: 10}, false},
		{2, Standbys{MaxLag: 60}, true},
		{0, Standbys{OrPrimary: true}, false},
		{0, Standbys{MaxLag: 9, OrPrimary: true}, true},
		{1, Standbys{MaxLag: 9, OrPrimary: true}, false},
	} {
		require.Equal(t, want.ok, s.suits(want.node, want.o), "%+v", want)
	}
	s.see(1, gone)
	s.see(2, gone)
	require.True(t, s.suits(0, Standbys{OrPrimary: true}))
	require.False(t, s.suits(1, Standbys{OrPrimary: true}))
}

func TestParse(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]int64{"": 0, "2/17/node2.4711": 0, "2/17/node2.4711!": 17, "x": 0, "1/x/y!": 0, "1/-3/y!": 0} {
		require.Equal(t, want, parseBallot(setting), setting)
	}
	tli, err := parseTimeline("0000001A0000000000000003")
	require.NoError(t, err)
	require.EqualValues(t, 26, tli)
	for _, bad := range []string{"", "0000001", "x000001A0000000000000003"} {
		_, err = parseTimeline(bad)
		require.Error(t, err, bad)
	}
}

// A host is one node, with every way to log in there; TLS comes first.
func TestNodes(t *testing.T) {
	t.Parallel()
	cfg, err := pgx.ParseConfig("host=a,b,/tmp,a port=5433,5432,5432,5433 sslmode=prefer user=x")
	require.NoError(t, err)
	nodes := nodesOf(cfg)
	require.Len(t, nodes, 3)
	require.Equal(t, "a:5433", nodes[0].name)
	require.NotNil(t, nodes[0].ways[0].TLSConfig)
	require.Nil(t, nodes[0].ways[1].TLSConfig)
	require.Len(t, nodes[2].ways, 1)
}

// Each attempt to log in to a node that is down ends in the same way. It is told once.
func TestState_DescribesErrorsOnce(t *testing.T) {
	t.Parallel()
	s := newState([]string{"a:1"}, time.Now(), time.Second)
	s.nodes[0].err = errors.New("failed to connect:\n\ta:1: connection refused\n\tb:1: no route\n\ta:1: connection refused")
	require.Equal(t, "a:1: failed to connect: a:1: connection refused b:1: no route", s.describe())
}
