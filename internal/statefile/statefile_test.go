package statefile_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/statefile"
	"github.com/pgrepmgr/repmgr/registry"
)

// The file is written when something is new, keeps the vote of its own node only, and
// says what to do where it is damaged.
func TestKeeper_Keep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, postmaster.NodesFile)
	d := statefile.Daemon{
		Node: 1, Name: "node1", Log: slog.New(slog.DiscardHandler), Tell: func(registry.Event) {}, Wake: func() {},
		Dir: func() (string, error) { return dir, nil }, Elsewhere: func() bool { return false },
		Report: func(what string, err error) { require.NoError(t, err, what) },
	}
	empty, err := statefile.Read(dir)
	require.NoError(t, err)
	require.Empty(t, empty)

	require.NoError(t, os.WriteFile(file, []byte(`{"ballot":{"Node":2,"Term":7,"Candidate":"2"}}`), 0o600))
	now := statefile.State{Nodes: []registry.Record{{ID: 1, Name: "node1"}}, Rules: []election.Rule{{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1}}}}
	var k statefile.Keeper
	k.Keep(d, now)
	kept, err := statefile.Read(dir)
	require.NoError(t, err)
	require.Equal(t, now.Nodes, kept.Nodes)
	require.Zero(t, kept.Rules[0].Compare(now.Rules[0]))
	require.Equal(t, ballot.Ballot{}, kept.Ballot, "another node's")

	first, err := os.Stat(file)
	require.NoError(t, err)
	k.Keep(d, now)
	again, err := os.Stat(file)
	require.NoError(t, err)
	require.True(t, os.SameFile(first, again), "nothing is new: the file is not written again")

	// pg_rewind and a clone put the file of another node in its place.
	for _, damage := range []func() error{
		func() error { return os.Remove(file) },
		func() error {
			return os.WriteFile(file, []byte(`{"ballot":{"Node":2,"Term":7,"Candidate":"2"}}`), 0o600)
		},
	} {
		require.NoError(t, damage())
		k.Keep(d, now)
		kept, err = statefile.Read(dir)
		require.NoError(t, err)
		require.Equal(t, now.Nodes, kept.Nodes)
	}

	// The data directory of a daemon whose server runs on another machine is another server's.
	require.NoError(t, os.WriteFile(file, []byte(`{"nodes":[]}`), 0o600))
	elsewhere := true
	d.Elsewhere = func() bool { return elsewhere }
	now.Rules = []election.Rule{{Term: 3, Seq: 2, Primary: 1, Voters: []int32{1}}}
	k.Keep(d, now)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.JSONEq(t, `{"nodes":[]}`, string(text))
	elsewhere = false
	k.Keep(d, now)
	kept, err = statefile.Read(dir)
	require.NoError(t, err)
	require.Equal(t, 2, kept.Rules[0].Seq)

	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	_, err = statefile.Read(dir)
	require.ErrorIs(t, err, failure.ErrDirectory)
	require.Contains(t, failure.Hint(err), "remove it")
}

// That a damaged file could not be read is over as soon as it is written anew.
func TestKeeper_DamagedFileIsWrittenAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, postmaster.NodesFile), []byte("{"), 0o600))
	trouble := map[string]error{}
	d := statefile.Daemon{
		Node: 1, Name: "node1", Log: slog.New(slog.DiscardHandler), Tell: func(registry.Event) {}, Wake: func() {},
		Dir: func() (string, error) { return dir, nil }, Elsewhere: func() bool { return false },
		Report: func(what string, err error) {
			trouble[what] = errors.Join(trouble[what], err)
			if err == nil {
				delete(trouble, what)
			}
		},
	}
	var k statefile.Keeper
	k.Keep(d, statefile.State{Nodes: []registry.Record{{ID: 1, Name: "node1"}}})
	require.Empty(t, trouble)
	_, err := statefile.Read(dir)
	require.NoError(t, err)
}

// Who can not pledge itself says so once, and once that it can again.
func TestKeeper_TellPledge(t *testing.T) {
	t.Parallel()
	var told []bool
	var reported []error
	d := statefile.Daemon{Node: 1, Name: "node1", Report: func(_ string, err error) { reported = append(reported, err) }, Tell: func(e registry.Event) { told = append(told, e.Success) }}
	var k statefile.Keeper
	for _, why := range []string{"", "a full disk", "a full disk", ""} {
		k.TellPledge(d, election.Peer{ID: 1, Answer: election.Answers, NoPledge: why})
	}
	k.TellPledge(d, election.Peer{ID: 1, Answer: election.Refused, NoPledge: "it is down"})
	require.Equal(t, []bool{false, true}, told)
	require.Equal(t, []error{errors.New("a full disk"), nil}, reported)
}
