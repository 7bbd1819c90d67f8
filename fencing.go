package repmgr

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/fence"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/voters"
)

// Beat is what a [Monitor] tells its watchdog, at least four times in each silence_timeout.
type Beat = fence.Beat

// TellWatchdog makes the Monitor write a [Beat] to w, as a line of JSON, again
// and again while it runs. Call it before Run. A write that waits holds the
// Monitor up: give w a deadline. Errors are ignored.
func (m *Monitor) TellWatchdog(w io.Writer) { m.guard.TellWatchdog(w) }

// Watchdog fences the local primary in the place of a [Monitor] that can not: one
// that is stopped, starved or dead. It belongs in a process of its own, which
// reads from r what [Monitor.TellWatchdog] writes. While the beats come it does
// nothing. When they stop it looks for a majority of the voters itself, and where
// none is found until the lease is over, it stops the server; the Monitor starts
// it, as a standby, when it is back.
//
// It returns nil when the Monitor ends in order, when another one has taken over
// from a dead one, when there is nothing left to guard, or with ctx. It closes r.
func (c *Cluster) Watchdog(ctx context.Context, r io.ReadCloser) error {
	return fence.Watchdog(ctx, r, c.fencing(), func(ctx context.Context) (*voters.Watch, error) {
		if err := c.cfg.requireMonitor(); err != nil {
			return nil, err
		}
		recs := c.keptRecords()
		if len(recs) == 0 {
			limit, cancel := context.WithTimeout(ctx, c.pulse())
			defer cancel()
			recs, _ = c.Nodes(limit) // without them it has no contact, and the lease counts down
		}
		w := c.watchVoters(ctx, func() {})
		w.SetNodes(recs)
		return w, nil
	})
}

// fencing is what the fencing of the local server needs of the configuration.
func (c *Cluster) fencing() fence.Settings {
	return fence.Settings{
		Node: int32(c.cfg.NodeID), Name: c.self(), Conninfo: c.cfg.Conninfo, Candidate: c.candidate(), Automatic: c.cfg.Failover == FailoverAutomatic,
		SilenceTimeout: c.cfg.SilenceTimeout, FenceTimeout: c.cfg.FenceTimeout, HangTimeout: c.cfg.HangTimeout, MonitorInterval: c.cfg.MonitorInterval,
		Device: c.cfg.WatchdogDevice, DeviceRequired: c.cfg.WatchdogRequired, Logger: c.cfg.Logger,
		Find: func(dir string) (*postmaster.Server, error) {
			srv, err := c.localServer(dir)
			if err != nil {
				return nil, err
			}
			return &srv.Server, nil
		},
		At: func(dir string) *postmaster.Server { return &newLocalServer(c.cfg, dir).Server },
		Kept: func(dir string) []election.Rule {
			k, err := c.kept(dir)
			if err != nil {
				return nil
			}
			return k.Rules
		},
	}
}

// proveFence tries whether this Monitor could stop the local server, without doing it,
// and says where that has changed.
func (m *Monitor) proveFence(ctx context.Context) {
	if m.cluster.cfg.NodeID == 0 || m.node.Local == nil || m.guard.DataDirectory() == "" && m.cluster.cfg.DataDirectory == "" {
		return
	}
	ctx, cancel := m.lookLimit(ctx)
	defer cancel()
	tried, err := m.guard.Prove(ctx, m.node.Local.Server)
	if !tried || m.manual() || m.node.Self.Role == RoleWitness { // with these nobody counts on it
		return
	}
	const what = "fencing"
	was := m.trouble.Has(what)
	m.report(what, err)
	if was == (err != nil) {
		return
	}
	e := Event{Type: EventFenceAbility, Success: err == nil, Details: "this daemon can stop its server"}
	if err != nil {
		e.Details = fmt.Sprintf("this daemon can not stop its server: %v", err)
	}
	m.tell(e)
}

// tellLater leaves an event for the goroutine of Run to tell, with the time when it happened.
func (m *Monitor) tellLater(e Event) {
	m.outbox.Later(e)
	m.lookNow()
}

// tellBeside tells what the goroutines beside Run have to say.
func (m *Monitor) tellBeside() {
	for _, e := range m.outbox.Due() {
		m.tell(e)
	}
	heartbeat, device := m.guard.Trouble()
	m.tellHeartbeat(heartbeat, m.guard.InOffice())
	m.report("the watchdog device", device)
}

func (m *Monitor) tellHeartbeat(trouble string, inOffice bool) {
	var err error
	if trouble != "" {
		err = errors.New(trouble)
	}
	if err == nil && !inOffice { // nobody writes it
		m.trouble.Moot("the heartbeat")
	} else {
		m.report("the heartbeat", err)
	}
}
