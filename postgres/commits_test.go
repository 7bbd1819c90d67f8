package postgres

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLeaksAtStart(t *testing.T) {
	t.Parallel()
	for version, want := range map[int]bool{130020: true, 130021: false, 140017: true, 140018: false, 150012: true, 150013: false, 160008: true, 160009: false, 170004: true, 170005: false, 180000: false} {
		fixed, leaks := LeaksAtStart(version)
		require.Equal(t, want, leaks, "%d: %s", version, fixed)
	}
}
