package pgfollow

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What the timelines tell of transaction 100, written in term 3 on timeline 2.
func TestJudge(t *testing.T) {
	t.Parallel()
	f := &Follower{}
	wrote, other, again := office{f, 0, 7}, office{f, 1, 8}, office{f, 0, 9}
	usual := Transaction{Xid: 100, Timeline: 2, Term: 3, on: wrote}
	change := func(do func(*Transaction)) Transaction { x := usual; do(&x); return x }
	for name, c := range map[string]struct {
		x         Transaction
		last, now office
		timeline  uint32
		setting   string
		want      Outcome // empty: its status tells
		again     bool
	}{
		"the same primary":                    {usual, wrote, wrote, 2, "1/1/ 3/2/50", "", false},
		"without repmgr":                      {change(func(x *Transaction) { x.Term = 0 }), wrote, wrote, 2, "", "", false},
		"it was started after a crash":        {usual, again, again, 2, "1/1/ 3/2/50", Unknown, false},
		"another node has its timeline":       {usual, wrote, other, 2, "1/1/ 4/2/50", Unknown, false},
		"another Follower":                    {usual, wrote, office{&Follower{}, 0, 7}, 2, "1/1/ 3/2/50", Unknown, false},
		"an unknown server":                   {change(func(x *Transaction) { x.on = office{} }), office{}, office{}, 2, "1/1/ 3/2/50", Unknown, false},
		"it had arrived":                      {usual, wrote, other, 3, "1/1/ 3/2/50 5/3/101", "", false},
		"it had not":                          {usual, wrote, other, 3, "1/1/ 3/2/50 5/3/100", Lost, false},
		"the fork after it decides":           {usual, wrote, other, 4, "3/2/50 5/3/90 6/4/200", Lost, false},
		"and no later one":                    {usual, wrote, other, 4, "3/2/50 5/3/101 6/4/", "", false},
		"nobody has noted it":                 {usual, wrote, other, 3, "1/1/ 3/2/50 5/3/", Unknown, false},
		"a later fork tells nothing":          {usual, wrote, other, 4, "3/2/50 5/3/ 6/4/200", Unknown, false},
		"not told yet":                        {usual, wrote, other, 3, "1/1/ 3/2/50", Unknown, true},
		"nothing told yet":                    {usual, wrote, other, 3, "", Unknown, true},
		"told in a way that nobody reads":     {usual, wrote, other, 3, "1/1/ 3/2/50 5/3/x", Unknown, true},
		"too long ago":                        {usual, wrote, other, 3, "4/2/ 5/3/101", Unknown, false},
		"its timeline was that of a stray":    {usual, wrote, other, 3, "1/1/ 4/2/50 5/3/101", Unknown, false},
		"its term was not told":               {change(func(x *Transaction) { x.Term = 0 }), wrote, other, 3, "1/1/ 3/2/50 5/3/101", Unknown, false},
		"a crash before the failover":         {usual, again, other, 3, "1/1/ 3/2/50 5/3/101", Unknown, false},
		"an older timeline is in office":      {usual, wrote, other, 1, "1/1/", Unknown, false},
		"its timeline is said to be the last": {usual, wrote, other, 3, "1/1/ 3/2/50 3/3/60 3/2/50", Unknown, true},
	} {
		got, again, err := judge(c.x, c.last, c.now, c.timeline, parseTimelines(c.setting))
		require.Equal(t, c.want, got, name)
		require.Equal(t, c.again, again, name)
		require.Equal(t, c.want == Unknown, err != nil, name)
	}
}
