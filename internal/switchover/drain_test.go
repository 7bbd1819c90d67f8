package switchover

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
)

func TestKeeps(t *testing.T) {
	t.Parallel()
	rule := election.Rule{Term: 3, Seq: 1, Primary: 1, Voters: []int32{1, 2, 3}, Quorum: true, Sync: []int32{2, 3}, Acks: 1}
	peers := func(change func([]election.Peer)) []election.Peer {
		all := []election.Peer{
			{ID: 1, Role: election.Primary, Answer: election.Answers, Running: election.Primary, Rule: rule},
			{ID: 2, Role: election.Standby, Answer: election.Answers, Running: election.Standby, Receiving: true, Rule: rule},
			{ID: 3, Role: election.Standby, Answer: election.Answers, Running: election.Standby, Receiving: true, Rule: rule},
		}
		change(all)
		return all
	}
	require.Empty(t, Keeps(2, peers(func([]election.Peer) {}), true))
	require.Contains(t, Keeps(1, peers(func([]election.Peer) {}), true), "is the primary")
	alone := func(all []election.Peer) { all[2].Answer = election.Silent }
	require.Contains(t, Keeps(2, peers(alone), true), "commits wait for 1 standbys, and without it 0 would be left")
	require.Empty(t, Keeps(2, peers(alone), false), "the primary goes on without waiting")
	require.Contains(t, Keeps(2, peers(func(all []election.Peer) { all[0].Answer = election.Silent }), true), "no primary")
	require.Empty(t, Keeps(2, peers(func(all []election.Peer) { all[1].Answer = election.Refused }), true), "it is stopped already")
	require.Contains(t, Keeps(2, peers(func(all []election.Peer) { all[1].Answer = election.NoSlots }), true), "it is not known what it runs as")
}
