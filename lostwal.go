package repmgr

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// LostWAL says why a standby can not go on: the server that it would stream from
// does not have the WAL any more that comes next.
type LostWAL struct {
	Upstream string `json:"upstream"`       // the node that was asked for it
	Needed   string `json:"needed_segment"` // the first segment that the standby would ask for
	Oldest   string `json:"oldest_segment"` // the first one that the upstream has
	Archive  bool   `json:"archive"`        // the standby has a restore_command: an archive may still bring it
}

func (l LostWAL) String() string {
	text := fmt.Sprintf("%s does not have WAL segment %s any more, only %s and later", l.Upstream, l.Needed, l.Oldest)
	if l.Archive {
		text += ", and restore_command has not brought it from the archive so far"
	}
	return text
}

// findLostWAL asks the server whether it still has what the standby of status s
// would ask it for. See [askForWAL].
func findLostWAL(ctx context.Context, n *registry.Server, of Record, s NodeStatus) *LostWAL {
	if !s.InRecovery {
		return nil
	}
	return askForWAL(ctx, n, of, wal.Position{Timeline: s.Timeline, LSN: registry.NextLSN(s)}, registry.HasArchive(s))
}

// askForWAL asks the server whether it still has the WAL from a position on. It is nil where it has, and where that can not be told: where
// the standby has not come to the end of its own WAL yet, or the login may not
// list the files of the upstream (pg_monitor may).
func askForWAL(ctx context.Context, n *registry.Server, of Record, next wal.Position, archive bool) *LostWAL {
	if next.LSN == 0 {
		return nil
	}
	var size uint32
	var end *wal.LSN
	var names []string
	err := n.Conn.QueryRow(ctx, `SELECT setting::bigint,
		CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END,
		(SELECT coalesce(array_agg(name), '{}') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$')
		FROM pg_settings WHERE name = 'wal_segment_size'`).Scan(&size, &end, &names)
	if err != nil || end == nil || next.LSN >= *end {
		return nil
	}
	needed := wal.SegmentName(next.Timeline, next.LSN, size)
	oldest := missingFrom(names, needed)
	if oldest == "" {
		return nil
	}
	return &LostWAL{Upstream: of.String(), Needed: needed, Oldest: oldest, Archive: archive}
}

// missingFrom is the oldest of the segments names, where needed is none of them
// on any timeline: a promotion moves the segment that it happens in to the new
// one. It is empty where needed is there.
func missingFrom(names []string, needed string) string {
	byPlace := func(a, b string) int { return strings.Compare(a[8:], b[8:]) }
	if len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return n[8:] == needed[8:] }) {
		return ""
	}
	return slices.MinFunc(names, byPlace)
}

// remedy is what an operator does about it: one command, on the node itself.
func (l LostWAL) remedy(node Record, probes []probe) string {
	primary, _ := registry.ByID(recordsOf(probes), node.UpstreamID)
	if found := primaries(probes); len(found) == 1 {
		primary = found[0].record
	}
	if l.Archive {
		return "Look at its log for what restore_command says. To copy it anew, on " + node.Name + ": " + recloneCommand(node, primary)
	}
	return "It has to be copied anew. Run on " + node.Name + ": " + recloneCommand(node, primary)
}

func recordsOf(probes []probe) []Record {
	recs := make([]Record, len(probes))
	for i, p := range probes {
		recs[i] = p.record
	}
	return recs
}

// recloneCommand is what an operator runs on node to have it copied anew from the primary.
func recloneCommand(node, primary Record) string {
	return rejoinCommand(node, primary, "--reclone")
}

func rejoinCommand(node, primary Record, option string) string {
	return fmt.Sprintf("repmgr%s node rejoin -d '%s' %s", confOption(node), strings.ReplaceAll(Redact(primary.Conninfo), "'", `'\''`), option)
}

// confOption names the node's own configuration file, where it is known.
func confOption(node Record) string {
	if node.ConfigFile == "" {
		return ""
	}
	return " -f " + node.ConfigFile
}

// slotOf is the slot of that name.
func slotOf(s NodeStatus, name string) (Slot, bool) {
	for _, slot := range s.Slots {
		if slot.Name == name {
			return slot, true
		}
	}
	return Slot{}, false
}

// seekLostWAL looks for the standbys that receive nothing and never will again,
// and notes it in their probes. All of them are looked at at once.
func (c *Cluster) seekLostWAL(ctx context.Context, probes []probe) {
	ctx, cancel := context.WithTimeout(ctx, postgres.DefaultConnectTimeout)
	defer cancel()
	found := make([]*LostWAL, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		up, ok := upstreamProbe(probes, p.record)
		if !ok || p.err != nil || p.record.Role != RoleStandby || registry.NextLSN(p.status) == 0 || attachedAnywhere(probes, p.record.Name) {
			continue
		}
		wg.Go(func() {
			if n, err := c.connectTo(ctx, up.record); err == nil {
				defer n.Close()
				found[i] = findLostWAL(ctx, n, up.record, p.status)
			}
		})
	}
	wg.Wait()
	for i := range probes {
		probes[i].lost = found[i]
	}
}

// attachedAnywhere says whether one of the servers sends to the standby of that name.
func attachedAnywhere(probes []probe, name string) bool {
	return slices.ContainsFunc(probes, func(p probe) bool { return p.err == nil && registry.Attachment(p.status, name) == "streaming" })
}

// upstreamProbe is the server that a standby would stream from: its registered
// upstream where that answers, else the primary.
func upstreamProbe(probes []probe, r Record) (probe, bool) {
	for _, p := range probes {
		if p.record.ID == r.UpstreamID && p.err == nil {
			return p, true
		}
	}
	if found := primaries(probes); len(found) == 1 {
		return found[0], true
	}
	return probe{}, false
}

// goneEvery is how often a monitor asks again whether the WAL is gone.
const goneEvery = 2 * time.Second

// watchWAL tells once when this standby needs WAL that its upstream does not have
// any more: nothing else will bring it back than a new copy.
func (m *Monitor) watchWAL(ctx context.Context) {
	s := m.sample.local
	if m.local == nil || m.primary == nil || m.witness || m.self.ID == 0 || registry.NextLSN(s) == 0 || m.action != nil || time.Since(m.goneAt) < goneEvery {
		return
	}
	m.goneAt = time.Now()
	up, of := m.primary.Server, m.primRec
	ctx, cancel := m.peerLimit(ctx)
	defer cancel()
	if r, ok := registry.ByID(m.recs, m.self.UpstreamID); ok && r.ID != of.ID && s.Receiver == nil {
		if n, err := m.cluster.connectTo(ctx, r); err == nil {
			defer n.Close()
			up, of = n, r
		}
	}
	var err error
	if s.Receiver == nil || up == m.primary.Server && registry.NextLSN(s) < m.sample.primaryLSN {
		if lost := findLostWAL(ctx, up, of, s); lost != nil {
			probes := []probe{{record: m.primRec, status: NodeStatus{}}}
			err = hint(kind(ErrWALGone, "%s can not go on: %s", m.self, lost), "%s", lost.remedy(m.self, probes))
		}
	}
	m.report("replication", err)
	if text := errText(err); text != m.gone {
		if m.gone = text; err != nil {
			m.tell(Event{Type: EventWALGone, Details: text + ". " + Hint(err)})
		}
	}
}
