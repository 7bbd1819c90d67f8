package wording

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 bytes", 10239: "10239 bytes", 10240: "10 kB", 40 << 20: "40 MB", 12345678901: "11 GB"} {
		require.Equal(t, want, Bytes(n))
	}
}

func TestPausedBy(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 15, 4, 5, 0, time.Local)
	require.Equal(t, " since "+at.Format("2006-01-02 15:04:05 MST")+" by ada@desk", PausedBy(at.UTC(), "ada@desk"))
	require.Empty(t, PausedBy(time.Time{}, ""))
}
