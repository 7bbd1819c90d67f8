package namesakes

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Which of two servers of one name is not the node.
func TestSuspicionProven(t *testing.T) {
	t.Parallel()
	seen := suspicion{lsn: 100, at: time.Unix(1000, 0)}
	foreign := func(w registry.WALSender) bool { return w.ClientAddr == "copy" }
	at := func(addr string, lsn wal.LSN) registry.WALSender {
		return registry.WALSender{ClientAddr: addr, FlushedLSN: lsn}
	}
	for name, test := range map[string]struct {
		want    bool
		tried   int64
		senders []registry.WALSender
	}{
		"both acknowledge":                           {true, 0, []registry.WALSender{at("node", 101), at("node", 102)}},
		"an old connection of the node":              {false, 0, []registry.WALSender{at("node", 100), at("node", 102)}},
		"the copy acknowledges, the node is cut off": {true, 0, []registry.WALSender{at("node", 100), at("copy", 102)}},
		"the copy has not acknowledged anything":     {true, 0, []registry.WALSender{at("node", 102), at("copy", 100)}},
		"one, and the node was asked since":          {true, 1001, []registry.WALSender{at("copy", 102)}},
		"one, and the node was not asked since":      {false, 999, []registry.WALSender{at("copy", 102)}},
	} {
		require.Equal(t, test.want, seen.proven(test.senders, time.Unix(test.tried, 0), foreign), name)
	}
}

// An address is foreign only where that is sure.
func TestForeignAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		conninfo, addr string
		want           bool
	}{
		{"host=192.0.2.7", "192.0.2.8", true},
		{"host=192.0.2.7", "192.0.2.7", false},
		{"host=192.0.2.7", "::ffff:192.0.2.7", false},
		{"host=db.example hostaddr=192.0.2.7", "192.0.2.8", true},
		{"host=192.0.2.7,192.0.2.8", "192.0.2.8", false},
		{"host=192.0.2.7", "", false},
		{"host=192.0.2.7", "127.0.0.1", false},
		{"host=/var/run/postgresql", "192.0.2.8", false},
		{"dbname=x", "192.0.2.8", false},
		{"host=localhost", "192.0.2.8", false},
		{"host=no-such-host.invalid", "192.0.2.8", false},
	} {
		require.Equal(t, test.want, foreignAddress(t.Context(), registry.Record{Conninfo: test.conninfo}, test.addr), "%+v", test)
	}
}
