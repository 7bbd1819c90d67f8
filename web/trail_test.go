package web

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/wal"
)

// viewAt is a view in which node1 has written up to end, and node2 has not replayed lag of that.
func viewAt(at time.Time, end wal.LSN, lag int64) health.View {
	v := view(1)
	v.At = at
	v.Peers[0].Position.LSN = end
	v.Peers[1].Position.LSN, v.Peers[1].Replayed = end, wal.LSN(int64(end)-lag)
	return v
}

// Where there is a browser or not: the page has the lag of each standby, and the WAL of the primary, of the last minutes, as
// pictures and in words.
func TestSparklines(t *testing.T) {
	t.Parallel()
	now := time.Now()
	h := newHandler(func() health.View { return viewAt(now, 200<<20, 30<<10) }, Options{})
	none := visit(t, h, "GET", "/ui").Body.String()
	require.NotContains(t, none, `class="spark"`, "one value makes no course")
	h = newHandler(h.look, Options{})
	for i, lag := range []int64{0, 20 << 20, 40 << 10, 10 << 10} { // ends 10 s ago
		h.trail.note(viewAt(now.Add(time.Duration(5*i-25)*time.Second), wal.LSN(100+5*i)<<20, lag))
	}
	page := visit(t, h, "GET", "/ui").Body.String()
	assert.Contains(t, page, `aria-label="WAL that node2 had not replayed in the last 25 s: 0 bytes to 20 MB; last 30 kB"`)
	assert.Contains(t, page, `aria-label="WAL that node1 wrote in the last 20 s: 1024 kB to 8704 kB per second; last 8704 kB"`)
	assert.Contains(t, page, "<small>up to 20 MB</small>")
	assert.Contains(t, page, "<small>up to 8704 kB per second</small>")
	assert.Contains(t, page, `<polyline points="115.0,23.0 116.0,1.0 117.0,23.0 118.0,23.0 120.0,23.0 120.0,23.0"/>`)
	assert.Contains(t, page, `<polyline points="116.0,20.4 117.0,20.4 118.0,20.4 120.0,1.0 120.0,1.0"/>`)
}

// A course has a gap where a value was not known, or nobody has looked, and small values do not fill the picture.
func TestSpark(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := func(seconds int, bytes int64) value {
		return value{now.Add(-time.Duration(seconds) * time.Second), bytes}
	}
	for name, c := range map[string]struct {
		all  []value
		want []string
	}{
		"nothing":                 {nil, nil},
		"one value":               {[]value{at(10, 5), at(5, -1)}, nil},
		"nothing known":           {[]value{at(10, -1), at(5, -1)}, nil},
		"half and all":            {[]value{at(600, 50), at(595, 100)}, []string{"0.0,12.0 1.0,1.0 1.0,1.0"}},
		"small":                   {[]value{at(10, 0), at(5, 10)}, []string{"118.0,23.0 119.0,12.0 119.0,12.0"}},
		"not known in the middle": {[]value{at(20, 0), at(15, 20), at(10, -1), at(5, 20)}, []string{"116.0,23.0 117.0,1.0 117.0,1.0", "119.0,1.0 119.0,1.0"}},
		"nobody has looked":       {[]value{at(60, 20), at(5, 20)}, []string{"108.0,1.0 108.0,1.0", "119.0,1.0 119.0,1.0"}},
	} {
		got := newSpark(c.all, now, 20, "WAL", "")
		if c.want == nil {
			require.Nil(t, got, name)
			continue
		}
		require.Equal(t, c.want, got.Lines, name)
	}
}

// What is kept is bounded, however often somebody looks; what is not known is not drawn as 0.
func TestTrail(t *testing.T) {
	t.Parallel()
	var tr trail
	now := time.Now()
	for i := range 400 {
		v := viewAt(now.Add(time.Duration(4*i-1600)*time.Second), wal.LSN(100+i)<<20, int64(i))
		if i == 398 {
			v.Peers[1].Answer = election.Silent
		}
		tr.note(v)
	}
	most := int(trailFor/trailEvery) + 1
	require.Greater(t, len(tr.past), most/2)
	require.LessOrEqual(t, len(tr.past), most)
	lag := tr.lag(2)
	require.Equal(t, int64(-1), lag[len(lag)-1].bytes)
	require.Equal(t, int64(396), lag[len(lag)-2].bytes, "not every look")
	tr.note(viewAt(now.Add(time.Minute), 1<<20, 0)) // a primary with less WAL
	rate := tr.rate()
	require.Equal(t, int64(-1), rate[len(rate)-1].bytes)
	require.Equal(t, int64(1<<20)/4, rate[0].bytes)
}

// A daemon of which nobody asks anything remembers all the same.
func TestTrail_WithoutRequests(t *testing.T) {
	t.Parallel()
	h := newHandler(func() health.View { return later(view(1)) }, Options{})
	listen(t, &Server{Handler: h})
	pgtest.WaitFor(t, "a look", func(context.Context) error {
		if all := h.trail.lag(2); len(all) == 0 || slices.Max([]int64{-1, all[0].bytes}) < 0 {
			return errors.New(fmt.Sprint(all))
		}
		return nil
	})
}
