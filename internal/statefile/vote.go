package statefile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/registry"
)

// Daemon is what a Keeper needs of its daemon.
type Daemon struct {
	Node registry.NodeID // 0: the daemon has no node of its own
	Name string          // of the node, in messages
	Log  *slog.Logger

	Dir       func() (string, error) // the data directory. An [failure.ErrConfig] says that it is not known.
	Elsewhere func() bool            // reports whether the server that answers is known to be on another machine
	Here      func() bool            // reports whether it is proven to be the one of the data directory

	Report func(what string, err error) // reports a problem; a nil error means that it is over
	Tell   func(registry.Event)
	Wake   func() // makes it look at its server again
}

// Lost is the vote that the server has lost and that could not be written back. Empty: none.
func (k *Keeper) Lost() string { return k.lost }

// TellPledge reports, in the log and as an event, when the server of the node can not give a
// pledge, and when it can again. me is the newest view of the node.
func (k *Keeper) TellPledge(d Daemon, me election.Peer) {
	if d.Node == 0 || me.Answer != election.Answers || me.NoPledge == k.reportedNoPledge {
		return
	}
	k.reportedNoPledge = me.NoPledge
	e := registry.Event{Type: registry.EventPledgeAbility, Success: me.NoPledge == "", Details: "this node could pledge itself in an election again"}
	var err error
	if me.NoPledge != "" {
		e.Details = "this node could not pledge itself in an election: " + me.NoPledge
		err = errors.New(me.NoPledge)
	}
	d.Report("a pledge of "+d.Name, err)
	d.Tell(e)
}

// KeepVote saves a second copy of the node's vote, and writes the vote back where its server
// has lost it: through ALTER SYSTEM RESET ALL, or a program that rewrites postgresql.auto.conf.
// It also reports other guarded settings that are gone. status is the newest state of the
// server.
func (k *Keeper) KeepVote(ctx context.Context, d Daemon, server *registry.Server, status registry.NodeStatus) {
	k.loadVote(d)
	set, err := k.autoConf.read(ctx, d, server)
	if errors.Is(err, ballot.ErrMissing) {
		err = nil // the server held no vote that was saved
	}
	var b ballot.Ballot
	if err == nil {
		b, err = ballot.Parse(set[ballot.Setting])
	}
	d.Report("reading the vote of "+d.Name, err)
	if err != nil {
		return
	}
	k.settings.tellLost(d, set, status)
	self := int32(d.Node)
	kept := k.state.Ballot
	switch {
	case b.Node == self && b.Term > kept.Term, b.Node == self && b.Term == kept.Term && sameCandidate(b, kept) && b != kept:
		k.state.Ballot = b
		k.write(d)
	case b.Node == self && b.Term == kept.Term && b.Term > 0 && b != kept:
		if text := kept.String() + " " + b.String(); k.reportedDoubleVote != text {
			k.reportedDoubleVote = text
			d.Tell(registry.Event{Type: registry.EventVoteLost, Details: fmt.Sprintf("this node gave two votes in term %d: %q was lost, and then %q given", b.Term, kept, b)})
			d.Log.Error("this node gave two votes in one term", "first", kept, "second", b, "hint", "Look at repmgr cluster show: two nodes may run as primary. Nobody but ALTER SYSTEM may write postgresql.auto.conf.")
		}
	case b.Term < kept.Term:
		k.restoreVote(ctx, d, server, b)
		return
	}
	k.lost = ""
}

// autoConf is the content of postgresql.auto.conf as it was last read, and which file that was. The
// server is not asked again for a file that has not changed.
type autoConf struct {
	file fs.FileInfo // nil: none is known that may be relied on
	set  map[string]string
}

// settledAfter is the age at which the time of a file's last change tells it from a later one: a
// change within one tick of the file system's clock has the same time.
const settledAfter = time.Second

func (a *autoConf) read(ctx context.Context, d Daemon, server *registry.Server) (map[string]string, error) {
	var now fs.FileInfo
	if dir, err := d.Dir(); err == nil && d.Here() {
		now, _ = os.Stat(filepath.Join(dir, "postgresql.auto.conf"))
	}
	if now != nil && a.file != nil && durable.Unchanged(now, a.file) {
		return a.set, nil
	}
	*a = autoConf{}
	set, err := ballot.ReadSettings(ctx, server.Conn)
	if err == nil && now != nil && time.Since(now.ModTime()) > settledAfter {
		*a = autoConf{now, set}
	}
	return set, err
}

// sameCandidate reports whether two ballots are for the same candidate. One of them may have
// the mark that the candidate has won.
func sameCandidate(a, b ballot.Ballot) bool {
	return strings.TrimSuffix(a.Candidate, ballot.ChosenMark) == strings.TrimSuffix(b.Candidate, ballot.ChosenMark)
}

// restoreVote writes the node's vote back to a server that holds b instead. Until that is done,
// no pledge of this node counts.
func (k *Keeper) restoreVote(ctx context.Context, d Daemon, server *registry.Server, b ballot.Ballot) {
	kept := k.state.Ballot
	err := ballot.Restore(ctx, server.Conn, kept)
	d.Report("writing back the vote of "+d.Name, err)
	if err == nil {
		err = server.Reload(ctx) // so that others notice the change
	}
	told := k.lost != ""
	k.lost = kept.String()
	details := fmt.Sprintf("the vote %q was gone from postgresql.auto.conf, which had %q: somebody else wrote that file, or ran ALTER SYSTEM RESET", kept, b)
	if err == nil {
		k.lost = ""
		d.Log.Warn("the vote of this node was lost, and was written back", "kept", kept, "found", b)
		d.Tell(registry.Event{Type: registry.EventVoteLost, Success: true, Details: details + "; it was written back"})
		d.Wake()
		return
	}
	if !told {
		d.Tell(registry.Event{Type: registry.EventVoteLost, Details: fmt.Sprintf("%s; it could not be written back: %v", details, err)})
	}
}
