package repmgr

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
	"github.com/pgrepmgr/repmgr/pgcontrol"
	"github.com/pgrepmgr/repmgr/registry"
)

// ScreenOptions are the choices of [Cluster.Screen].
type ScreenOptions struct {
	DryRun bool // look and decide, change nothing
}

// ScreenResult says as what the local server is to be started.
type ScreenResult struct {
	Node    string        `json:"node"`
	As      Role          `json:"as"` // empty: it runs already
	Reason  string        `json:"reason"`
	Changed bool          `json:"changed"` // it was made a standby of nobody
	Elapsed time.Duration `json:"elapsed_ns"`
	DryRun  bool          `json:"dry_run,omitempty"`
}

// Screen decides, before the local server is started, whether it may start as a
// primary, and makes it a standby of nobody where another node may have become one
// since it went down: that can neither accept a write nor acknowledge one, and its
// Monitor brings it back. Call it each time before the server is started, by
// whatever starts it (ExecStartPre in systemd), as the user that runs PostgreSQL.
//
// It asks the nodes that the Monitor of this node knew last, for at most twice
// silence_timeout and a second; where all answer, or a majority is enough, no longer than
// they take. With failover=manual only a primary that is seen to run counts. It changes
// nothing where the server runs, is a standby already or a witness, or where no Monitor has
// ever run. What it says holds for the moment in which it looked. An error means that
// nothing was decided: do not start the server then.
//
// Where the others stay away, or everything is paused, nobody brings such a standby back
// before they are there, or it is unpaused, or an operator promotes it.
func (c *Cluster) Screen(ctx context.Context, o ScreenOptions) (ScreenResult, error) {
	begun := time.Now()
	res := ScreenResult{Node: c.self(), DryRun: o.DryRun}
	srv, err := c.localServer("")
	if err == nil {
		err = srv.MayControl()
	}
	if err == nil {
		_, err = pgcontrol.Read(srv.Dir)
	}
	if err != nil {
		return res, err
	}
	res.As, res.Reason, err = c.screen(ctx, srv)
	if err == nil && res.As == RoleStandby && !srv.IsStandby() && !o.DryRun {
		if err = srv.Detach(); err != nil {
			err = kind(ErrDirectory, "make %s a standby: %w", srv.Dir, err)
		}
		res.Changed = err == nil
	}
	res.Elapsed = time.Since(begun)
	return res, err
}

func (res ScreenResult) String() string {
	switch res.As {
	case "":
		return fmt.Sprintf("%s was not screened: %s", res.Node, res.Reason)
	case RoleStandby:
		return fmt.Sprintf("%s starts as a standby: %s", res.Node, res.Reason)
	default:
		return fmt.Sprintf("%s may start as a primary: %s", res.Node, res.Reason)
	}
}

func (c *Cluster) screen(ctx context.Context, srv *salvage.Server) (as Role, reason string, err error) {
	k, err := c.kept("")
	if err != nil {
		return "", "", err
	}
	self, registered := registry.ByID(k.Nodes, c.cfg.NodeID)
	switch {
	case srv.Runs():
		return "", "it runs already", nil
	case srv.IsStandby():
		return RoleStandby, "it is one already", nil
	case len(k.Nodes) == 0:
		return RolePrimary, "no repmgrd has watched it yet", nil
	case !registered:
		return RolePrimary, "it was not registered when repmgrd last watched it", nil
	case self.Role == RoleWitness:
		return RolePrimary, "it is a witness, with data of its own", nil
	}
	own := election.Peer{ID: int32(self.ID)}
	vote, err := salvage.ReadBallot(filepath.Join(srv.Dir, postmaster.AutoConf))
	if err != nil {
		return "", "", kind(ErrDirectory, "read the vote of %s: %w", self, err)
	}
	if vote.Node == own.ID { // a clone brings its source's
		own.Term, own.Chosen = vote.Term, strings.HasSuffix(vote.Candidate, ballot.ChosenMark)
	}
	var voters []int32
	for _, r := range k.Nodes {
		voters = append(voters, int32(r.ID))
	}
	if c.cfg.Arbiter != nil {
		voters = append(voters, election.Arbiter)
	}

	w := c.watchVoters(ctx, func() {})
	defer w.Close()
	w.SetNodes(registry.OthersThan(k.Nodes, self.ID))
	verdict, err := w.Screen(ctx, c.policy(), own, k.Rules, voters)
	if err != nil {
		return "", "", err
	}
	if verdict == election.ScreenedClear || verdict == election.ScreenedManual {
		return RolePrimary, string(verdict), nil
	}
	return RoleStandby, string(verdict), nil
}
