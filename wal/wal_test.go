package wal

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// Timeline 5 came from 3, which came from 2, which came from 1; 4 is a sibling.
var threeHops = History{
	{1, 0x3000000, "no recovery target specified"},
	{2, 0x5000000, "no recovery target specified"},
	{3, 0x1_00000000, "before 2026-01-01 00:00:00+00"},
}

func TestCanFollow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		local, target Position
		want          Verdict
		ok            bool
	}{
		{"behind on the same timeline", Position{5, 10}, Position{5, 11}, SameTimeline, true},
		{"level on the same timeline", Position{5, 11}, Position{5, 11}, SameTimeline, true},
		{"ahead by one byte on the same timeline", Position{5, 12}, Position{5, 11}, Ahead, false},
		{"target on a lower timeline, local behind", Position{6, 1}, Position{5, 11}, TargetOnLowerTimeline, false},
		{"target on a lower timeline that is an ancestor", Position{5, 0x2000000}, Position{2, 0x4000000}, TargetOnLowerTimeline, false},
		{"last hop, before the fork", Position{3, 0xFFFFFFFF}, Position{5, 0x1_10000000}, BeforeFork, true},
		{"last hop, at the fork", Position{3, 0x1_00000000}, Position{5, 0x1_10000000}, BeforeFork, true},
		{"last hop, one byte beyond the fork", Position{3, 0x1_00000001}, Position{5, 0x1_10000000}, BeyondFork, false},
		{"middle hop, at its own fork", Position{2, 0x5000000}, Position{5, 0x1_10000000}, BeforeFork, true},
		{"middle hop, beyond its own fork but before the last", Position{2, 0x5000001}, Position{5, 0x1_10000000}, BeyondFork, false},
		{"first hop, at its own fork", Position{1, 0x3000000}, Position{5, 0x1_10000000}, BeforeFork, true},
		{"first hop, beyond its own fork but before the next", Position{1, 0x4000000}, Position{5, 0x1_10000000}, BeyondFork, false},
		{"timeline skipped by the target's line, low LSN", Position{4, 1}, Position{5, 0x1_10000000}, NotInHistory, false},
		{"the target's own LSN does not matter on a higher timeline", Position{1, 0x3000000}, Position{5, 0}, BeforeFork, true},
		{"local LSN unknown", Position{1, 0}, Position{5, 0x1_10000000}, PositionUnknown, false},
		{"local timeline unknown", Position{0, 1}, Position{5, 0x1_10000000}, PositionUnknown, false},
		{"target timeline unknown", Position{1, 1}, Position{0, 0x1_10000000}, PositionUnknown, false},
		{"target LSN unknown on the same timeline", Position{5, 1}, Position{5, 0}, PositionUnknown, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := CanFollow(c.local, c.target, threeHops)
			if got != c.want || got.OK() != c.ok {
				t.Errorf("got %q ok=%v, want %q ok=%v", got, got.OK(), c.want, c.ok)
			}
		})
	}
	if got := CanFollow(Position{1, 1}, Position{2, 2}, nil); got != NotInHistory {
		t.Errorf("without a history: got %q, want %q", got, NotInHistory)
	}
	if Verdict("").OK() {
		t.Error("a verdict never asked for is OK")
	}
}

func TestVerdict_Explain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		local, target Position
		want          string
	}{
		{Position{5, 10}, Position{5, 11}, "local server at 0/A can follow the target at 0/B: both are on timeline 5"},
		{Position{2, 0x5000000}, Position{5, 1 << 33}, "local server at 0/5000000 on timeline 2 can follow the target on timeline 5, whose line left timeline 2 at 0/5000000"},
		{Position{5, 12}, Position{5, 11}, "local server at 0/C on timeline 5 is 1 bytes ahead of the target at 0/B on the same timeline"},
		{Position{6, 12}, Position{5, 11}, "target is on timeline 5, lower than timeline 6 of the local server"},
		{Position{2, 0x5000010}, Position{5, 1 << 33}, "local server at 0/5000010 on timeline 2 has diverged: it is 16 bytes beyond 0/5000000, where the line of the target's timeline 5 left timeline 2"},
		{Position{4, 1}, Position{5, 1 << 33}, "local server has diverged: its timeline 4 is not in the history of the target's timeline 5"},
		{Position{}, Position{5, 11}, "position unknown: local server at 0/0 on timeline 0, target at 0/B on timeline 5"},
	} {
		if got := CanFollow(c.local, c.target, threeHops).Explain(c.local, c.target, threeHops); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestParseHistory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, in string
		want     History
	}{
		{"empty file", "", nil},
		{"one line without a newline", "1\t0/B41630\tno recovery target specified", History{{1, 0xB41630, "no recovery target specified"}}},
		{
			"three hops with the blank lines that PostgreSQL writes",
			"1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tno recovery target specified\n\n3\t1/0\tbefore 2026-01-01 00:00:00+00\n", threeHops,
		},
		{"comments, indents and carriage returns", "# kept\r\n  \t# too\r\n \t7 A/B\r\n", History{{7, 0xA_0000000B, ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseHistory([]byte(c.in))
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestParseHistory_NamesTheMalformedLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, in, want string }{
		{"timeline is not a number", "# c\n\nx\t0/1\tr\n", `line 3: timeline "x"`},
		{"timeline is zero", "0\t0/1\n", `line 1: timeline "0"`},
		{"timeline is negative", "-1\t0/1\n", `line 1: timeline "-1"`},
		{"timeline beyond 32 bits", "4294967296\t0/1\n", `line 1: timeline "4294967296"`},
		{"no LSN", "1\t0/1\n2\n", `line 2: parse LSN ""`},
		{"LSN without a slash", "1\t01 reason\n", `line 1: parse LSN "01"`},
		{"timelines shrink", "1\t0/1\n3\t0/2\n2\t0/3\n", "line 3: timeline 2 after timeline 3"},
		{"timeline repeated", "1\t0/1\n1\t0/2\n", "line 2: timeline 1 after timeline 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := ParseHistory([]byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) || h != nil {
				t.Errorf("got %v, %v, want an error with %q", h, err, c.want)
			}
		})
	}
}

func TestSegmentName(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		tli  Timeline
		lsn  LSN
		size uint32
		want string
		// start is the first LSN of the segment.
		start LSN
	}{
		{"default size", 1, 0x1B374D848, 0, "0000000100000001000000B3", 0x1B3000000},
		{"first byte of a segment", 1, 0x1B3000000, 16 << 20, "0000000100000001000000B3", 0x1B3000000},
		{"last byte of a segment", 1, 0x1B3FFFFFF, 16 << 20, "0000000100000001000000B3", 0x1B3000000},
		{"4 MiB", 2, 0xE7D140, 4 << 20, "000000020000000000000003", 0xC00000},
		{"1 MiB", 0xABCDEF01, 0xFFFFFFFF, 1 << 20, "ABCDEF010000000000000FFF", 0xFFF00000},
		{"1 GiB", 1, math.MaxUint64, 1 << 30, "00000001FFFFFFFF00000003", 0xFFFFFFFF_C0000000},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := SegmentName(c.tli, c.lsn, c.size)
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			tli, start, err := ParseSegmentName(got, c.size)
			if err != nil || tli != c.tli || start != c.start {
				t.Errorf("got %d %s %v, want %d %s", tli, start, err, c.tli, c.start)
			}
		})
	}
}

func TestParseSegmentName_Refuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "00000002.history", "0000000100000001000000B", "0000000100000001000000BG", "+000000100000001000000B3",
		"0000000100000001000000B3.partial", "000000010000000100000100",
	} {
		if tli, lsn, err := ParseSegmentName(name, DefaultSegmentSize); err == nil {
			t.Errorf("%q: got %d %s, want an error", name, tli, lsn)
		}
	}
	if got, want := HistoryFileName(0x1F), "0000001F.history"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseLSN_Refuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "/", "1/", "/1", "1", "1/2/3", "100000000/0", "0/100000000", "-1/0", "0x1/0", " 0/1", "G/0"} {
		if got, err := ParseLSN(s); err == nil {
			t.Errorf("%q: got %s, want an error", s, got)
		}
	}
}

func FuzzParseLSN(f *testing.F) {
	f.Add("16/B374D848")
	f.Add("0/0")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			return
		}
		if back, err := ParseLSN(l.String()); err != nil || back != l {
			t.Errorf("%q: got %s, %v, want %s", s, back, err, l)
		}
	})
}

// What is read, written in PostgreSQL's form, reads back the same.
func FuzzParseHistory(f *testing.F) {
	f.Add([]byte("# c\n1\t0/3000000\tno recovery target specified\n\n2 1/5000000\n"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHistory(b)
		if err != nil {
			return
		}
		var s strings.Builder
		for _, e := range h {
			fmt.Fprintf(&s, "%d\t%s\t%s\n\n", e.Timeline, e.SwitchLSN, e.Reason)
		}
		if back, err := ParseHistory([]byte(s.String())); err != nil || !slices.Equal(back, h) {
			t.Errorf("%q: got %v, %v, want %v", b, back, err, h)
		}
	})
}

func TestLSN_UnknownIsZeroEmptyAndNull(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		src  any
		want LSN
	}{
		{"text column", "16/B374D848", 0x16_B374D848},
		{"bytes", []byte("16/B374D848"), 0x16_B374D848},
		{"empty text", "", 0},
		{"null", nil, 0},
	} {
		got := LSN(7)
		if err := got.Scan(c.src); err != nil || got != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.name, got, err, c.want)
		}
	}
	got := LSN(7)
	if err := got.Scan(7); err == nil || got != 7 {
		t.Errorf("a number: got %s, %v, want an error and no change", got, err)
	}
	if v, err := LSN(0).Value(); v != nil || err != nil {
		t.Errorf("unknown as a parameter: got %v, %v, want null", v, err)
	}
	if v, err := LSN(0x16_B374D848).Value(); v != "16/B374D848" || err != nil {
		t.Errorf("as a parameter: got %v, %v", v, err)
	}
	if got, want := LSN(5).Bytes(9), int64(-4); got != want {
		t.Errorf("behind: got %d bytes, want %d", got, want)
	}
	if got := LSN(5).Bytes(0); got != 0 {
		t.Errorf("from unknown: got %d bytes, want 0", got)
	}
}
