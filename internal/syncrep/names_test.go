package syncrep

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// The setting is read as PostgreSQL reads it: what it refuses is no setting.
func TestParseSyncNames(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	recs := []registry.Record{{ID: 1, Name: "node1"}, {ID: 2, Name: "Node2"}, {ID: 3, Name: `a, "b"`}}
	none, unknown := election.SyncSetting{}, election.SyncSetting{Acks: -1}
	set := func(acks int, ids ...int32) election.SyncSetting {
		return election.SyncSetting{Acks: acks, Standbys: ids}
	}
	for text, want := range map[string]election.SyncSetting{
		``: none, `*`: unknown, `"*"`: unknown, `node1`: unknown, `node1,"node2"`: unknown, `2 (node1, node2)`: unknown,
		`FIRST 1 (node1)`: unknown, `first 1(node1)`: unknown, `ANY 1 (*)`: unknown, `ANY 1 ("*")`: unknown, `ANY 1 ("node1", "*")`: unknown,
		`ANY 1 ("node1", "node2")`: set(1, 1, 2), `any 2(NODE2 ,"NODE1")`: set(2, 1, 2), `ANY 1 (node1)`: set(1, 1),
		`ANY 1 ("a, ""b""")`: set(1, 3), `ANY 1 ("repmgr:term-not-open")`: set(1, 0), `ANY 1 (other)`: set(1, unknownNodeID), `ANY 1 (17)`: set(1, unknownNodeID),
		`ANY 1 ("other, node1")`: set(1, unknownNodeID), `aNy 1 (a$1, é)`: set(1, unknownNodeID, unknownNodeID),
		// Not PostgreSQL's:
		`ANY 1 node1`: unknown, `ANY (node1)`: unknown, `ANY 1 ()`: unknown, `ANY 1 (node1,)`: unknown, `node1 node2`: unknown, `ANY 1 ("node1)`: unknown,
		`ANY 1 (node-1)`: unknown, `(node1)`: unknown, `node1,`: unknown, `ANY one (node1)`: unknown, `a.b`: unknown, `ANY 1 ((node1))`: unknown,
	} {
		require.Equal(t, want, SettingOf(text, recs), "%q", text)
		conn := server.Conn(t)
		_, err := conn.Exec(t.Context(), `ALTER SYSTEM SET synchronous_standby_names = `+postgres.QuoteLiteral(text))
		_, ok := parseSyncNames(text)
		require.Equal(t, err == nil, ok || text == "", "%q: PostgreSQL says %v", text, err)
	}
	name := func(id int32) string {
		if r, ok := registry.ByID(recs, registry.NodeID(id)); ok {
			return r.Name
		}
		return fmt.Sprint(id) // as a watch does
	}
	for _, s := range []election.SyncSetting{set(1, 1), set(2, 1, 2), election.BlockingSetting(), none} {
		require.Equal(t, s, SettingOf(Value(s, name), recs))
	}
	require.Equal(t, set(1, 0, 1), SettingOf(Value(set(1, 1, 3), name), recs), "a name that is not written")
}
