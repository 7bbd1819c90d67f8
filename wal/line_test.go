package wal_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/wal"
)

func history(forks ...wal.LSN) (h wal.History) {
	for i, lsn := range forks {
		h = append(h, wal.HistoryEntry{Timeline: wal.Timeline(i + 1), SwitchLSN: lsn})
	}
	return h
}

// Up to where the log of a server is that of a line.
func TestLine_Shared(t *testing.T) {
	t.Parallel()
	line := wal.Lineage{Timeline: 3, Past: history(100, 200), Fingerprint: 7}
	for name, test := range map[string]struct {
		line, server wal.Lineage
		end, want    wal.LSN
	}{
		"on the line":                         {line, wal.Lineage{Timeline: 3, Past: history(100, 200), Fingerprint: 7}, 250, 250},
		"its mark can not be read":            {line, wal.Lineage{Timeline: 3, Past: history(100, 200)}, 250, 250},
		"on an ancestor, before the fork":     {line, wal.Lineage{Timeline: 2, Past: history(100)}, 190, 190},
		"at the fork":                         {line, wal.Lineage{Timeline: 2, Past: history(100)}, 200, 200},
		"beyond the fork":                     {line, wal.Lineage{Timeline: 2, Past: history(100)}, 201, 200},
		"on timeline 1, before its fork":      {line, wal.Lineage{Timeline: 1}, 99, 99},
		"on timeline 1, beyond its fork":      {line, wal.Lineage{Timeline: 1}, 300, 100},
		"left the line later":                 {line, wal.Lineage{Timeline: 4, Past: history(100, 200, 240)}, 300, 240},
		"left it elsewhere":                   {line, wal.Lineage{Timeline: 3, Past: history(100, 150)}, 300, 150},
		"the same numbers from another place": {line, wal.Lineage{Timeline: 3, Past: history(100, 210)}, 300, 200},
		"a twin of the same numbers":          {line, wal.Lineage{Timeline: 3, Past: history(100, 200), Fingerprint: 8}, 250, 200},
		"a twin that has nothing yet":         {line, wal.Lineage{Timeline: 3, Past: history(100, 200), Fingerprint: 8}, 200, 200},
		"a branch that has no number yet":     {wal.Lineage{Past: history(100, 200)}, wal.Lineage{Timeline: 5, Past: history(100, 200)}, 250, 250},
		"but its ancestor beyond the fork":    {wal.Lineage{Past: history(100, 200)}, wal.Lineage{Timeline: 2, Past: history(100)}, 250, 200},
		"another first timeline":              {line, wal.Lineage{Timeline: 9}, 50, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, test.line.Shared(test.server, test.end))
		})
	}
	require.True(t, line.Extends(wal.Lineage{Timeline: 2, Past: history(100)}))
	require.True(t, line.Extends(wal.Lineage{Timeline: 1}))
	require.False(t, line.Extends(line))
	require.False(t, line.Extends(wal.Lineage{Timeline: 2, Past: history(90)}))
	require.False(t, wal.Lineage{}.Known())
}

// A history file is evidence only together with what the server has replayed.
func TestEvidence_Timeline(t *testing.T) {
	t.Parallel()
	four := wal.Lineage{Timeline: 4, Past: wal.History{{Timeline: 3, SwitchLSN: 500}}}
	for name, test := range map[string]struct {
		evidence wal.Evidence
		want     wal.Timeline
		sure     bool
	}{
		"nothing newer":                       {wal.Evidence{At: wal.Position{Timeline: 3, LSN: 400}, Replayed: 600}, 3, true},
		"it has not come to the fork":         {wal.Evidence{At: wal.Position{Timeline: 3, LSN: 400}, Replayed: 500, Forks: []wal.Lineage{four}}, 3, true},
		"it may have gone either way":         {wal.Evidence{At: wal.Position{Timeline: 3, LSN: 400}, Replayed: 501, Forks: []wal.Lineage{four}}, 4, false},
		"it is known to have gone past":       {wal.Evidence{At: wal.Position{Timeline: 3, LSN: 501}, Replayed: 600, Forks: []wal.Lineage{four}}, 3, true},
		"a branch of another timeline":        {wal.Evidence{At: wal.Position{Timeline: 2, LSN: 400}, Replayed: 600, Forks: []wal.Lineage{four}}, 2, true},
		"a history that can not be read":      {wal.Evidence{At: wal.Position{Timeline: 3, LSN: 400}, Replayed: 600, Forks: []wal.Lineage{{Timeline: 4}}}, 3, true},
		"what is sure is on the newer branch": {wal.Evidence{At: wal.Position{Timeline: 4, LSN: 510}, Replayed: 600, Forks: []wal.Lineage{four}}, 4, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, sure := test.evidence.Timeline()
			require.Equal(t, test.want, got)
			require.Equal(t, test.sure, sure)
		})
	}
}

// A record can be found in the middle of a log, behind the end of one that began before.
func TestFirstRecord(t *testing.T) {
	t.Parallel()
	page := func(at wal.LSN, flags uint16, rest uint32) []byte {
		b := make([]byte, 8192)
		binary.LittleEndian.PutUint16(b[2:], flags)
		binary.LittleEndian.PutUint64(b[8:], uint64(at))
		binary.LittleEndian.PutUint32(b[16:], rest)
		return b
	}
	const at = 3<<24 + 8192
	for name, test := range map[string]struct {
		log  []byte
		want wal.LSN
		ok   bool
	}{
		"a page that begins with a record": {page(at, 0, 0), at + 24, true},
		"behind the rest of another":       {page(at, 1, 13), at + 24 + 16, true},
		"on the next page":                 {append(page(at, 1, 9000), page(at+8192, 1, 9000-8168)...), at + 8192 + 24 + 832, true},
		"none":                             {page(at, 1, 9000), 0, false},
		"a page of a file used before":     {page(at-1<<24, 0, 0), 0, false},
		"nothing":                          {nil, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := wal.FirstRecord(test.log, at, 1<<24)
			require.Equal(t, test.ok, ok)
			require.Equal(t, test.want, got)
		})
	}
	require.EqualValues(t, 3<<24+40, wal.RecordAt(3<<24, 1<<24))
	require.EqualValues(t, at+24, wal.RecordAt(at, 1<<24))
	require.EqualValues(t, at+64, wal.RecordAt(at+64, 1<<24))
}
