package salvage

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/wal"
)

// What stands there and can not be read is a note, too, of a place that is not known.
func TestOwnWAL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		behind wal.LSN
		noted  bool
	}{
		`{"timeline": 3, "lsn": "0/5000"}`: {0x5000, true},
		`{"timeline": 2, "lsn": "0/5000"}`: {0x5000, false}, // before a promotion
		`{"timeline": 3`:                   {0, true},
		``:                                 {0, true},
	} {
		behind, noted := OwnWAL(map[string]string{ballot.LocalWAL: text}, 3)
		require.Equal(t, want.noted, noted, text)
		if noted {
			require.Equal(t, want.behind, behind, text)
		}
	}
	_, noted := OwnWAL(nil, 3)
	require.False(t, noted)
}

// It is noted on disk, and what an earlier rejoin has noted of that timeline stays.
func TestServer_MarkOwnWAL(t *testing.T) {
	t.Parallel()
	s := &Server{}
	s.Dir = t.TempDir()
	for _, behind := range []wal.LSN{0x5000, 0x6000} {
		require.NoError(t, s.MarkOwnWAL(wal.Position{Timeline: 3, LSN: behind}))
		got, noted, err := s.OwnWAL(3)
		require.NoError(t, err)
		require.True(t, noted)
		require.EqualValues(t, 0x5000, got)
	}
}

// Behind a segment that was left early the WAL goes on in the next one, unless that is an old one that was given a new name.
func TestServer_WALEnd(t *testing.T) {
	t.Parallel()
	const size, page = 1 << 20, 8 << 10
	for name, c := range map[string]struct {
		pages map[wal.LSN]int // in each segment
		want  wal.LSN
	}{
		"in one segment":         {map[wal.LSN]int{0x400000: 3}, 0x400000 + 3*page},
		"over its end":           {map[wal.LSN]int{0x400000: size / page, 0x500000: 2}, 0x500000 + 2*page},
		"at its end":             {map[wal.LSN]int{0x400000: size / page}, 0x500000},
		"a segment left early":   {map[wal.LSN]int{0x400000: 2, 0x500000: 5, 0x600000: 1}, 0x600000 + page},
		"one that is of old use": {map[wal.LSN]int{0x400000: 2, 0x500000: 0}, 0x400000 + 2*page},
		"none":                   {nil, 0x400000},
	} {
		s := &Server{}
		s.Dir = t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "pg_wal"), 0o700))
		for start, pages := range c.pages {
			segment := make([]byte, size)
			for i := range size / page {
				at := start + wal.LSN(i*page)
				if i >= pages {
					at = 0
					if pages == 0 {
						at = 0x100000 + wal.LSN(i*page)
					}
				}
				binary.LittleEndian.PutUint64(segment[i*page+8:], uint64(at))
			}
			require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "pg_wal", wal.SegmentName(1, start, size)), segment, 0o600))
		}
		require.Equal(t, c.want, s.WALEnd(pgcontrol.ControlFile{WALSegmentSize: size, MinRecoveryPoint: 0x400100}), name)
	}
}
