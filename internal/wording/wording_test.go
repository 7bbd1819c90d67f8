package wording

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 bytes", 10239: "10239 bytes", 10240: "10 kB", 40 << 20: "40 MB", 12345678901: "11 GB"} {
		require.Equal(t, want, Bytes(n))
	}
}
