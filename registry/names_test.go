package registry

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNameProblem(t *testing.T) {
	t.Parallel()
	recs := []Record{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2"}, {ID: 3, Name: "NODE2"}, {ID: 4, Name: "*"}, {ID: 5, Name: "a, b"}, {ID: 6, Name: "n-1_2.dc"}}
	for id, want := range map[NodeID]string{1: "", 2: "at most in case", 3: "at most in case", 4: "letters, digits", 5: "letters, digits", 6: ""} {
		r, _ := ByID(recs, id)
		got := NameProblem(r, recs)
		require.Equal(t, want == "", got == "", got)
		require.Contains(t, got, want)
	}
}
