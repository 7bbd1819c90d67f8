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

// State is the content of the file: the registered nodes, and what the server last held.
type State struct {
	Nodes  []registry.Record `json:"nodes"`
	Ballot ballot.Ballot     `json:"ballot"` // the newest vote of this node that its daemon has seen
	Rules  []election.Rule   `json:"rules"`  // the newest rule, and the rule before while an election could miss the newest
	Guard  *voters.Guarded   `json:"guard"`  // of the primary, where that is another node; nil: unknown
}

// Read reads the state file of a data directory. Where there is none, the state is empty.
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

// Keeper maintains the state file of one node for its daemon. One goroutine owns it. The zero
// value is ready to use.
type Keeper struct {
	state      State       // the state that was last written
	path       string      // of the file that was last written
	file       fs.FileInfo // of that file; nil: this Keeper has written none yet
	voteLoaded bool        // the vote that an earlier daemon has saved was loaded

	lost               string   // a vote that the server has lost and that could not be written back; empty: none
	reportedDoubleVote string   // the two votes of one term that were last reported
	reportedNoPledge   string   // the last reported reason why the node could not pledge itself
	settings           settings // the guarded settings
	autoConf           autoConf
}

// Keep writes the nodes, rules and guard of now to the file, where they have changed, or where
// the file is not the one that was written: pg_rewind and a clone put the file of another node in
// its place, which does not hold the vote of this one. Keep must not be called while another
// daemon acts for the node: of two daemons that write the file, each would take a part of the
// other's state for its own.
func (k *Keeper) Keep(d Daemon, now State) {
	k.loadVote(d)
	now.Ballot = k.state.Ballot
	same := func(a, b election.Rule) bool { return a.Compare(b) == 0 }
	if slices.Equal(now.Nodes, k.state.Nodes) && slices.EqualFunc(now.Rules, k.state.Rules, same) && k.state.Guard.Same(now.Guard) {
		if !k.replaced() {
			return
		}
		d.Log.Info("the file of nodes, rules and vote was changed or removed, and is written anew", "file", postmaster.NodesFile)
	}
	k.state = now
	k.write(d)
}

// replaced reports whether the file is gone, or is not the one that was last written.
func (k *Keeper) replaced() bool {
	if k.file == nil {
		return false
	}
	now, err := os.Stat(k.path)
	return err != nil || !durable.Unchanged(now, k.file)
}

func (k *Keeper) write(d Daemon) {
	if d.Elsewhere() { // the data directory here belongs to another server
		k.state.Nodes, k.file = nil, nil // so that the file is written as soon as the server is here
		return
	}
	var err error
	if dir, errDir := d.Dir(); errDir == nil { // without the data directory nothing is saved
		if err = write(dir, k.state); err == nil {
			d.Report(troubleReading, nil) // a file that was damaged is whole again
			k.path = filepath.Join(dir, postmaster.NodesFile)
			k.file, err = os.Stat(k.path)
		}
	}
	d.Report("keeping the nodes and rules", err)
}

// Reload makes the next calls read the file again and rewrite it, because another daemon has
// acted for the node meanwhile.
func (k *Keeper) Reload() { k.voteLoaded, k.state.Nodes, k.file = false, nil, nil }

// troubleReading is what is reported of reading the file at the start.
const troubleReading = "reading what was kept"

// loadVote reads, once, the vote that an earlier daemon has saved.
func (k *Keeper) loadVote(d Daemon) {
	if k.voteLoaded || d.Elsewhere() {
		return
	}
	var s State
	dir, err := d.Dir()
	switch {
	case errors.Is(err, failure.ErrConfig):
		return // this machine does not have the data directory
	case err == nil:
		s, err = Read(dir)
	}
	d.Report(troubleReading, err)
	k.voteLoaded, k.state.Ballot = true, s.Ballot
	if s.Ballot.Node != int32(d.Node) { // a clone has the file of its source
		k.state.Ballot = ballot.Ballot{}
	}
}
