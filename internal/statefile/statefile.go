package statefile

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
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/registry"
)

// State is what the file holds: who there is, and what the server held last.
type State struct {
	Nodes  []registry.Record `json:"nodes"`
	Ballot ballot.Ballot     `json:"ballot"` // the newest vote of this node that its daemon has seen
	Rules  []election.Rule   `json:"rules"`  // the newest, and the one before, while an election could miss the newest
	Guard  *voters.Guarded   `json:"guard"`  // of the primary, where that is another node; nil: not known
}

// Read reads the state that is kept in a data directory. Where nothing was ever kept it is empty.
func Read(dir string) (s State, err error) {
	path := filepath.Join(dir, postmaster.NodesFile)
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err == nil:
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return State{}, failure.WithHint(failure.Of(failure.ErrDirectory, "read what repmgrd has kept in %s: %w", path, err), "If it is damaged, remove it: repmgrd writes it anew.")
	}
	return s, nil
}

func write(dir string, s State) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, postmaster.NodesFile), text)
}

// Keeper keeps the state of one node for its daemon. One goroutine owns it. The zero value
// is ready to use.
type Keeper struct {
	state      State // what was written last
	voteLoaded bool  // what an earlier daemon has kept of the vote is in it

	lost               string   // the vote that the server has lost and could not be given back; empty: none
	reportedDoubleVote string   // the two votes of one term that were told last
	reportedNoPledge   string   // why the node could not pledge itself, as was told last
	settings           settings // those beside the vote
}

// Keep writes the nodes, rules and guard of now, where they have changed. While another
// daemon acts for the node it must not be called: of two that write the file at once the
// first one takes the other's half for its own.
func (k *Keeper) Keep(d Daemon, now State) {
	k.loadVote(d)
	now.Ballot = k.state.Ballot
	same := func(a, b election.Rule) bool { return a.Compare(b) == 0 }
	if slices.Equal(now.Nodes, k.state.Nodes) && slices.EqualFunc(now.Rules, k.state.Rules, same) && k.state.Guard.Same(now.Guard) {
		return
	}
	k.state = now
	k.write(d)
}

func (k *Keeper) write(d Daemon) {
	if d.Elsewhere() { // the file here is that of another server
		k.state.Nodes = nil // so that it is written as soon as the server is here
		return
	}
	var err error
	if dir, errDir := d.Dir(); errDir == nil { // a machine without the data directory keeps nothing
		err = write(dir, k.state)
	}
	d.Report("keeping the nodes and rules", err)
}

// Reload makes the next calls read the file and write it anew: another daemon has acted for
// the node meanwhile.
func (k *Keeper) Reload() { k.voteLoaded, k.state.Nodes = false, nil }

// loadVote reads, once, what the daemon before this one has kept of the node's vote.
func (k *Keeper) loadVote(d Daemon) {
	if k.voteLoaded || d.Elsewhere() {
		return
	}
	var s State
	dir, err := d.Dir()
	switch {
	case errors.Is(err, failure.ErrConfig):
		return // there is no data directory here
	case err == nil:
		s, err = Read(dir)
	}
	d.Report("reading what was kept", err)
	k.voteLoaded, k.state.Ballot = true, s.Ballot
	if s.Ballot.Node != int32(d.Node) { // a clone brings its source's
		k.state.Ballot = ballot.Ballot{}
	}
}
