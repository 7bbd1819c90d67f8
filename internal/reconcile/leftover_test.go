package reconcile

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

func TestLeftoverSlots(t *testing.T) {
	t.Parallel()
	slot := registry.Slot{Name: "repmgr_slot_3", Physical: true}
	owner := registry.Record{ID: 3, Name: "node3", SlotName: slot.Name}
	elsewhere := election.Peer{ID: 3, Answer: election.Answers, Running: election.Standby, Receiving: true, Receives: 2}
	for name, tc := range map[string]struct {
		change func(s *registry.Slot, rows *[]registry.Record, p *election.Peer)
		kept   bool
	}{
		"its owner streams from another node": {func(*registry.Slot, *[]registry.Record, *election.Peer) {}, false},
		"its owner is the primary": {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) {
			*p = election.Peer{ID: 3, Answer: election.Answers, Running: election.Primary, Rule: election.Rule{Term: 2, Primary: 3}}
		}, false},
		"it is that of this node":               {func(_ *registry.Slot, rows *[]registry.Record, _ *election.Peer) { (*rows)[0].ID = 1 }, false},
		"its owner streams from this node":      {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) { p.Receives = 1 }, true},
		"whom its owner streams from is open":   {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) { p.Receives = 0 }, true},
		"its owner streams from nobody":         {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) { p.Receiving = false }, true},
		"its owner is down":                     {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) { p.Answer = election.Refused }, true},
		"its owner was never seen":              {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) { *p = election.Peer{} }, true},
		"its owner runs as a primary by itself": {func(_ *registry.Slot, _ *[]registry.Record, p *election.Peer) { p.Running = election.Primary }, true},
		"it is in use":                          {func(s *registry.Slot, _ *[]registry.Record, _ *election.Peer) { s.Active = true }, true},
		"it is logical":                         {func(s *registry.Slot, _ *[]registry.Record, _ *election.Peer) { s.Physical = false }, true},
		"it is temporary":                       {func(s *registry.Slot, _ *[]registry.Record, _ *election.Peer) { s.Temporary = true }, true},
		"nobody registered owns it":             {func(_ *registry.Slot, rows *[]registry.Record, _ *election.Peer) { *rows = nil }, true},
		"its owner has another slot now":        {func(_ *registry.Slot, rows *[]registry.Record, _ *election.Peer) { (*rows)[0].SlotName = "other" }, true},
		"a logical one of a former primary, which streams": {func(s *registry.Slot, rows *[]registry.Record, _ *election.Peer) {
			*rows, *s = nil, registry.Slot{Name: s.Name, Former: true}
		}, false},
		"and is read": {func(s *registry.Slot, rows *[]registry.Record, _ *election.Peer) {
			*rows, *s = nil, registry.Slot{Name: s.Name, Former: true, Active: true}
		}, true},
		"it is that of a switchover which has ended": {func(s *registry.Slot, rows *[]registry.Record, p *election.Peer) {
			*rows, s.Name, *p = nil, registry.HandoverSlot, election.Peer{ID: 1, Rule: election.Rule{Term: 2}, Handover: election.Handover{ID: "x", Term: 1}}
		}, false},
		"it is that of a switchover": {func(s *registry.Slot, rows *[]registry.Record, p *election.Peer) {
			*rows, s.Name, *p = nil, registry.HandoverSlot, election.Peer{ID: 1, Rule: election.Rule{Term: 1}, Handover: election.Handover{ID: "x", Term: 1, Begun: true}}
		}, true},
		"a second owner may need it": {func(s *registry.Slot, rows *[]registry.Record, _ *election.Peer) {
			*rows = append(*rows, registry.Record{ID: 4, Name: "node4", SlotName: s.Name})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, rows, p := slot, []registry.Record{owner}, elsewhere
			tc.change(&s, &rows, &p)
			look := Look{Self: registry.Record{ID: 1, Name: "node1"}, Records: rows, Status: registry.NodeStatus{Slots: []registry.Slot{s}, Receiver: &registry.WALReceiver{Status: "streaming"}}}
			found := LeftoverSlots(look, []election.Peer{p})
			if tc.kept {
				require.Empty(t, found)
			} else {
				require.NotEmpty(t, found[s])
			}
		})
	}
}
