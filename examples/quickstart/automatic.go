package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr"
)

// automate turns failover=automatic on, on the three nodes that are left.
func (s *story) automate(ctx context.Context) error {
	s.chapter("From now on by itself")
	s.say("node1 stays away. It would be a voter that never answers, so it is taken out.")
	s.command("repmgr -f %s primary unregister --node-id=1", s.heir.conf)
	if _, err := s.heir.UnregisterPrimary(ctx, repmgr.UnregisterOptions{NodeID: 1}); err != nil {
		return err
	}
	nodes := []*node{s.heir, s.follower, s.node4}
	for _, n := range append(nodes, s.node1) {
		n.stop()
	}
	s.monitors.Wait()
	s.say("On each of the others, three lines more; then its repmgrd is started anew.")
	s.command("tail -n 3 %s", s.heir.conf)
	s.say("failover=automatic")
	s.say("synchronous_mode=quorum")
	s.say("data_directory='%s'", s.heir.dir)
	begin := time.Now()
	for _, n := range nodes {
		if err := n.automate(); err != nil {
			return err
		}
		if err := s.monitor(ctx, n); err != nil {
			return err
		}
	}
	s.space()
	if err := s.ready(ctx); err != nil {
		return err
	}
	s.took(time.Since(begin), "From now on a commit waits until one standby has it as well, after")

	s.space()
	s.command("repmgr -f %s cluster explain", s.heir.conf)
	e, err := s.heir.Explain(ctx, repmgr.ExplainOptions{})
	if err != nil {
		return err
	}
	s.paragraphs(e.String())
	return nil
}

// automate writes the settings of failover into the node's repmgr.conf and loads
// it again; all else is the defaults.
func (n *node) automate() error {
	f, err := os.OpenFile(n.conf, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "failover=automatic\nsynchronous_mode=quorum\ndata_directory='%s'\n", n.dir)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	cfg, err := repmgr.LoadConfig(n.conf)
	if err != nil {
		return err
	}
	cfg.Notifiers = n.cfg.Notifiers
	n.cfg = cfg
	n.Cluster, err = repmgr.New(cfg)
	return err
}

// ready waits until commits wait for any one of two standbys, and nothing stands
// in the way of a failover.
func (s *story) ready(ctx context.Context) error {
	return until(ctx, startLimit, "the rule", func(ctx context.Context) error {
		st, err := s.heir.ServiceStatus(ctx)
		switch {
		case err != nil:
			return err
		case st.Rule == nil || st.Rule.Acks == 0 || len(st.Rule.Sync) < 2 || len(st.Rule.Voters) != 3:
			return fmt.Errorf("%q", st.RuleText())
		case len(st.Issues) > 0:
			return errors.New(st.Issues[0])
		}
		return nil
	})
}

// takeover kills the postmaster of the primary while an application writes, and
// leaves everything else to the monitors.
func (s *story) takeover(ctx context.Context) (err error) {
	s.chapter(s.heir.name + " is lost as well, and nobody does anything")
	nodes := []*node{s.heir, s.follower, s.node4}
	s.app, err = startApplication(ctx, nodes)
	if err != nil {
		return err
	}
	s.say("The application commits an order every 3 ms, wherever a server takes it.")
	s.space()
	s.say("%s", s.bold(fmt.Sprintf("%8s%10s  %s", "second", "commits", "acknowledged by")))
	const rows, killAt, every = 12, 4, 200 * time.Millisecond // more rows where the machine is slow
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 1; ; i++ {
		if _, by := s.app.outage(); i > rows && (by != s.heir.name || time.Since(s.killed) > startLimit) {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		commits, by, note := s.app.since()
		if note != "" {
			note = fmt.Sprintf("%*s< %s", max(1, 16-len(by)), "", note)
		}
		s.say("%8.1f%10d  %s%s", (time.Duration(i) * every).Seconds(), commits, by, s.dim(note))
		if i == killAt {
			pid, err := s.heir.killPostmaster()
			if err != nil {
				return err
			}
			s.killed = time.Now()
			s.command("kill -9 %d (the postmaster of %s, in the middle of its work)", pid, s.heir.name)
		}
	}
	outage, winner := s.app.outage()
	s.space()
	s.took(outage, "For so long no commit was acknowledged, seen by the application:")
	former := s.heir
	for _, n := range nodes {
		if n.name == winner {
			s.heir = n
		}
	}
	if s.heir == former {
		return fmt.Errorf("no other node took over from %s", former.name)
	}
	s.former = former
	return s.account(ctx)
}

// account shows what the commands tell of a failover.
func (s *story) account(ctx context.Context) error {
	if err := s.show(ctx, s.heir); err != nil {
		return err
	}
	var past []repmgr.FailoverRecord
	err := until(ctx, startLimit, "the record of the failover", func(ctx context.Context) (err error) {
		if past, err = s.heir.Failovers(ctx, 1); err == nil && len(past) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	if err != nil {
		return err
	}
	s.space()
	s.command("repmgr -f %s cluster failovers --term=%d", s.heir.conf, past[0].Term)
	s.paragraphs(past[0].Line())
	for _, step := range past[0].Steps {
		s.say("  %8s  %-10s %s", short(step.After), step.Step, s.dim(cut(step.Evidence, 52)))
	}
	s.space()
	s.command("repmgr -f %s service status", s.heir.conf)
	st, err := s.heir.ServiceStatus(ctx)
	if err != nil {
		return err
	}
	s.serviceStatus(st)
	return nil
}

// comeback waits for the former primary, and looks for what was promised.
func (s *story) comeback(ctx context.Context) error {
	s.chapter(s.former.name + " comes back, as a standby")
	s.say("Its own repmgrd does that, as rejoin=rewind says, the default.")
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("%s did not rejoin within %s", s.former.name, startLimit))
	defer cancel()
	for back := false; !back; {
		select {
		case e := <-s.events:
			if back = e.Type == repmgr.EventNodeRejoin && e.Success; back {
				s.took(e.At.Sub(s.killed), "%s is back, after", e.Node)
				s.paragraphs(strings.ReplaceAll(e.Details, s.page.dir+"/", "") + ".")
				if strings.Contains(e.Details, " saved in ") {
					s.say("Of that no client was told that it was committed, as the next lines show.")
				}
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := s.show(ctx, s.heir); err != nil {
		return err
	}
	s.space()
	orders := s.app.end()
	nodes := []*node{s.heir, s.follower, s.node4}
	if s.heir != s.former {
		nodes[0], nodes[1], nodes[2] = s.heir, s.former, s.other()
	}
	begin := time.Now()
	if err := s.inStep(ctx, nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		got, err := query[int](ctx, n.server, `SELECT count(*) FROM orders WHERE id = ANY ($1)`, orders)
		switch {
		case err != nil:
			return err
		case got != len(orders):
			return fmt.Errorf("%s has %d of the %d orders that were acknowledged", n.name, got, len(orders))
		}
	}
	s.took(time.Since(begin), "%s orders were acknowledged. None is missing on any node,", counted(int64(len(orders))))
	return nil
}

// other is the node that was a standby all along.
func (s *story) other() *node {
	if s.heir == s.node4 {
		return s.follower
	}
	return s.node4
}

// killPostmaster kills the one process that a server can not lose. What it leaves
// behind is the business of the node's repmgrd.
func (s *server) killPostmaster() (int, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0, fmt.Errorf("read postmaster.pid of %s: %w", s.name, err)
	}
	return pid, syscall.Kill(pid, syscall.SIGKILL)
}
