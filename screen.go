package repmgr

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/pgcontrol"
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
// silence_timeout and a second. With failover=manual only a primary that is seen to run
// counts. It changes nothing where the server runs, is a standby already or a witness, or
// where no Monitor has ever run. An error means that nothing was decided.
func (c *Cluster) Screen(ctx context.Context, o ScreenOptions) (ScreenResult, error) {
	begun := time.Now()
	res := ScreenResult{Node: c.self(), DryRun: o.DryRun}
	srv, err := c.localServer("")
	if err == nil {
		err = srv.mayControl()
	}
	if err == nil {
		_, err = pgcontrol.Read(srv.dir)
	}
	if err != nil {
		return res, err
	}
	res.As, res.Reason, err = c.screen(ctx, srv)
	if err == nil && res.As == RoleStandby && !isStandby(srv.dir) && !o.DryRun {
		if err = writeStandby(srv.dir, detached, nil); err != nil {
			err = kind(ErrDirectory, "make %s a standby: %w", srv.dir, err)
		}
		res.Changed = err == nil
	}
	res.Elapsed = time.Since(begun)
	return res, err
}

func (res ScreenResult) String() string {
	switch {
	case res.As == "":
		return fmt.Sprintf("%s was not screened: %s", res.Node, res.Reason)
	case res.As == RoleStandby:
		return fmt.Sprintf("%s starts as a standby: %s", res.Node, res.Reason)
	default:
		return fmt.Sprintf("%s may start as a primary: %s", res.Node, res.Reason)
	}
}

func isStandby(dir string) bool {
	return slices.ContainsFunc([]string{"standby.signal", "recovery.signal"}, func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	})
}

func (c *Cluster) screen(ctx context.Context, srv *localServer) (as Role, reason string, err error) {
	recs := c.keptRecords()
	self, registered := recordByID(recs, c.cfg.NodeID)
	switch {
	case srv.runs():
		return "", "it runs already", nil
	case isStandby(srv.dir):
		return RoleStandby, "it is one already", nil
	case self.Role == RoleWitness:
		return RolePrimary, "it is a witness, with data of its own", nil
	case !registered:
		return RolePrimary, "no repmgrd has watched it yet", nil
	}
	vote, err := readBallot(filepath.Join(srv.dir, autoConf))
	if err != nil {
		return "", "", err
	}
	own := election.Peer{ID: int32(self.ID), Term: vote.Term, Chosen: vote.Node == int32(self.ID) && strings.HasSuffix(vote.Candidate, chosenMark)}
	var voters []int32
	for _, r := range recs {
		voters = append(voters, int32(r.ID))
	}
	if c.cfg.Arbiter != nil {
		voters = append(voters, election.Arbiter)
	}

	w := newWatch(ctx, c, func() {})
	defer w.close()
	w.follow(othersThan(recs, self.ID))
	for limit := time.Now().Add(2*c.cfg.SilenceTimeout + time.Second); ; {
		verdict := election.Screen(time.Now(), own, voters, w.peers())
		manual, over := c.cfg.Failover != FailoverAutomatic, time.Now().After(limit)
		switch {
		case verdict == election.ScreenedDeposed:
			return RoleStandby, string(verdict), nil
		case verdict == election.ScreenedClear && w.settled(): // an operator may have promoted without a majority
			return RolePrimary, string(verdict), nil
		case manual && w.settled():
			return RolePrimary, "no other node that answers is one, and with failover=manual nobody is elected", nil
		case over:
			return RoleStandby, string(verdict), nil
		}
		if err := pause(ctx, pollInterval); err != nil {
			return "", "", context.Cause(ctx)
		}
	}
}
