package repmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/observer"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// observe looks at the local node and its primary, and adds what is known of the voters.
func (m *Monitor) observe(ctx context.Context, now time.Time) election.Observation {
	o := election.Observation{Now: now}
	if m.cluster.cfg.NodeID == 0 {
		m.node.LookFrom(ctx)
	} else {
		m.node.Look(ctx, m.state.Phase, &o)
	}
	m.observeVoters(&o)
	return o
}

// observerOptions are what the looks at the node need of this Monitor.
func (m *Monitor) observerOptions() observer.Options {
	c := m.cluster
	return observer.Options{
		ID: c.cfg.NodeID, Manual: m.manual(), SilenceTimeout: c.cfg.SilenceTimeout, MonitorInterval: c.cfg.MonitorInterval,
		Watch: m.watch, ConnectLocal: c.connectLocal, ConnectTo: c.connectTo, FindPrimary: c.primaryOf,
		AllRecords: c.Nodes, Kept: c.keptRecords, Report: m.report,
	}
}

// lookLimit bounds one look at one server.
func (m *Monitor) lookLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, observer.Patience, fmt.Errorf("no answer within %s", observer.Patience))
}

// primaryOf is the one primary; of several, the one that sends to the node, and is not behind
// its timeline.
func (c *Cluster) primaryOf(ctx context.Context, recs []Record, timeline wal.Timeline) (Record, error) {
	rec, err := c.findPrimary(ctx, recs)
	if !errors.Is(err, ErrRefused) {
		return rec, err
	}
	for _, p := range primaries(c.survey(ctx, recs)) {
		if registry.Attachment(p.status, c.cfg.NodeName) != "" && p.status.Timeline >= timeline {
			return p.record, nil
		}
	}
	return Record{}, err
}
