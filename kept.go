package repmgr

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
)

// kept is what must be known of the cluster while the own server is down: who
// there is, and what the server held last.
type kept struct {
	Nodes  []Record        `json:"nodes"`
	Ballot ballot.Ballot   `json:"ballot"` // the newest vote of this node that its Monitor has seen
	Rules  []election.Rule `json:"rules"`  // the newest, and the one before, while an election could miss the newest
	Guard  *voters.Guarded `json:"guard"`  // of the primary, where that is another node; nil: not known
}

// kept reads it. Where nothing was ever kept it is empty. dir is the data directory
// where the configuration names none.
func (c *Cluster) kept(dir string) (k kept, err error) {
	srv, err := c.localServer(dir)
	if err != nil {
		return k, err
	}
	path := filepath.Join(srv.Dir, postmaster.NodesFile)
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return k, nil
	case err == nil:
		err = json.Unmarshal(text, &k)
	}
	if err != nil {
		return kept{}, hint(kind(ErrDirectory, "read what repmgrd has kept in %s: %w", path, err), "If it is damaged, remove it: repmgrd writes it anew.")
	}
	return k, nil
}

func (c *Cluster) keptRecords() []Record {
	k, err := c.kept("")
	if err != nil {
		return nil
	}
	return k.Nodes
}

// keep writes what the Monitor knows, where that has changed. While another one acts
// for the node the file is that one's: of two that write it at once the first one
// takes the other's half for its own.
func (m *Monitor) keep(o election.Observation) {
	if len(m.recs) == 0 || !o.Local.Up || o.Self == 0 || m.yields {
		return
	}
	m.recall()
	own := voters.PeerOf(o.Peers, o.Self).Rule
	if !own.Known() {
		own = m.rule
	}
	now := kept{Nodes: m.recs, Ballot: m.kept.Ballot}
	for _, r := range []election.Rule{own, m.ruleBefore()} {
		if r.Known() {
			now.Rules = append(now.Rules, r)
		}
	}
	if ruler := m.ruler(); ruler != m.cluster.cfg.NodeID && m.watch.Voter(int32(ruler)) != nil {
		now.Guard = voters.GuardedOf(voters.PeerOf(m.watch.Peers(), int32(ruler)))
	}
	same := func(a, b election.Rule) bool { return a.Compare(b) == 0 }
	if slices.Equal(now.Nodes, m.kept.Nodes) && slices.EqualFunc(now.Rules, m.kept.Rules, same) && m.kept.Guard.Same(now.Guard) {
		return
	}
	m.kept = now
	m.writeKept()
}

func (m *Monitor) writeKept() {
	m.report("keeping the nodes and rules", m.cluster.keep(m.dataDirectory(), m.kept))
}

// recall reads, once, what the Monitor before this one has kept of the node's vote.
func (m *Monitor) recall() {
	if m.recalled || m.isElsewhere() {
		return
	}
	k, err := m.cluster.kept(m.dataDirectory())
	if errors.Is(err, ErrConfig) {
		return // there is no data directory here
	}
	m.report("reading what was kept", err)
	m.recalled, m.kept.Ballot = true, k.Ballot
	if k.Ballot.Node != int32(m.cluster.cfg.NodeID) { // a clone brings its source's
		m.kept.Ballot = ballot.Ballot{}
	}
}

func (c *Cluster) keep(dir string, k kept) error {
	srv, err := c.localServer(dir)
	if err != nil {
		return nil //nolint:nilerr // a machine without the data directory keeps nothing
	}
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(srv.Dir, postmaster.NodesFile), text)
}
