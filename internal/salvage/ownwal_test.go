package salvage

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
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
