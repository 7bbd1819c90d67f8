package postgres

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestLeaksAtStart(t *testing.T) {
	t.Parallel()
	for version, want := range map[int]bool{130020: true, 130021: false, 140017: true, 140018: false, 150012: true, 150013: false, 160008: true, 160009: false, 170004: true, 170005: false, 180000: false} {
		fixed, leaks := LeaksAtStart(version)
		require.Equal(t, want, leaks, "%d: %s", version, fixed)
	}
}

// A session whose server ended while it answered is lost; nothing is said about what listens there.
func TestClassify_ConnClosed(t *testing.T) {
	t.Parallel()
	require.Equal(t, ReachBroken, Classify(fmt.Errorf("query: %w", pgconn.ErrConnClosed)))
}
