package voters

import (
	"context"
	"testing"
	"time"

	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// A receiver's sender is found whichever way its address is written; where it
// could be two nodes, or none, it is not guessed.
func TestWatch_Sender(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	w := &Watch{ctx: ctx, stop: stop, recs: []registry.Record{
		{ID: 1, Conninfo: "host=localhost port=5501 dbname=x"},
		{ID: 2, Conninfo: "host=other.invalid,127.0.0.1 port=5502 dbname=x"},
		{ID: 3, Conninfo: "host=name.invalid hostaddr=10.1.1.3"},
		{ID: 4, Conninfo: "postgresql://10.1.1.4:5504/x"},
		{ID: 5, Conninfo: "host=10.1.1.5,10.1.1.6 port=1,2"},
		{ID: 6, Conninfo: "host=10.1.1.7"},
		{ID: 7, Conninfo: "host=10.1.1.7"},
		{ID: 8, Conninfo: "host=/run/postgresql"},
	}}
	defer w.Close()
	for limit := time.Now().Add(10 * time.Second); w.nodeAt("127.0.0.1", 5501) == 0 && time.Now().Before(limit); {
		_ = wait.Pause(ctx, postgres.PollInterval) // the name is looked up beside
	}
	for _, test := range []struct {
		host string
		port int
		want registry.NodeID
	}{
		{"localhost", 5501, 1},
		{"127.0.0.1", 5501, 1},
		{"localhost", 5502, 2},
		{"other.invalid", 5502, 2},
		{"name.invalid", 5432, 3},
		{"10.1.1.3", 5432, 3},
		{"10.1.1.3", 5433, 0},
		{"10.1.1.4", 5504, 4},
		{"10.1.1.5", 1, 5},
		{"10.1.1.6", 2, 5},
		{"10.1.1.6", 1, 0},
		{"10.1.1.7", 5432, 0},
		{"/run/postgresql", 5432, 8},
		{"/tmp", 5432, 0},
		{"nobody.invalid", 5432, 0},
	} {
		if got := w.nodeAt(test.host, test.port); got != test.want {
			t.Errorf("%s port %d: got %d, want %d", test.host, test.port, got, test.want)
		}
	}
}
