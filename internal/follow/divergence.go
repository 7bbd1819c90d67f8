package follow

import (
	"context"
	"errors"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// Divergence says why a standby can never follow its upstream: it has WAL that the upstream never had.
type Divergence struct {
	Upstream string `json:"upstream"`
	Why      string `json:"why"`    // a sentence
	Remedy   string `json:"remedy"` // what mends it, with the command
}

// FindDivergence asks both servers whether the standby of that status has diverged. nil: it has not, or
// that is unknown.
func (m Move) FindDivergence(ctx context.Context, s registry.NodeStatus) *Divergence {
	if !s.InRecovery || s.Timeline == 0 || s.ReplayedLSN == 0 {
		return nil
	}
	s.ReceivedLSN = s.ReplayedLSN // what it has received beyond that may be a part of a record that nobody else has to have
	_, err := m.CheckAncestry(ctx, s)
	if !errors.Is(err, failure.ErrTimelineDiverged) {
		return nil
	}
	return &Divergence{Upstream: m.Upstream.String(), Why: err.Error(), Remedy: failure.Hint(err)}
}
