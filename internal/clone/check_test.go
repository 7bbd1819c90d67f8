package clone

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What was tried is not advised.
func TestDirectoryHint_NotForceAgain(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"Name another directory with -D", "Change data_directory in /etc/repmgr.conf"} {
		for _, pid := range []int{0, 4711} {
			require.NotContains(t, directoryHint(other, "/data", true, pid), "--force")
			require.Contains(t, directoryHint(other, "/data", false, pid), "--force")
			require.Equal(t, pid > 0, strings.Contains(directoryHint(other, "/data", true, pid), "Stop that server first"))
		}
	}
}
