package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr"
)

// show ends a chapter with the cluster as n sees it, once all who have just
// attached are in step.
func (s *story) show(ctx context.Context, n *node) error {
	s.space()
	s.command("repmgr -f %s cluster show --compact", n.conf)
	var st repmgr.ClusterStatus
	err := until(ctx, startLimit, "standbys to be in step", func(ctx context.Context) (err error) {
		if st, err = n.Status(ctx); err != nil {
			return final{err}
		}
		for _, v := range st.Nodes {
			if v.Attached == "catchup" {
				return fmt.Errorf("%s is catching up", v.Name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.clusterShow(st)
	return nil
}

// await waits for the monitors of nodes to tell of an event.
func (s *story) await(ctx context.Context, typ repmgr.EventType, nodes ...*node) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	told := map[string]bool{}
	for len(told) < len(nodes) {
		select {
		case e := <-s.events:
			if e.Type == typ && !told[e.Node] && slices.ContainsFunc(nodes, func(n *node) bool { return n.name == e.Node }) {
				told[e.Node] = true
				s.took(time.Since(s.killed), "%s's monitor tells: %s, after", e.Node, e.Type)
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for event %s: %w", typ, ctx.Err())
		}
	}
	return nil
}

// lag is a row of the manual's repl_status. Before a monitor's first sample
// there is none.
type lag struct {
	Node        repmgr.NodeID `db:"standby_node"`
	Replication *int64        `db:"replication_lag"`
	Apply       *int64        `db:"apply_lag"`
	Time        *float64      `db:"time_lag"`
}

// watchLag prints repl_status again and again. In the middle, node3 is told not
// to apply what it receives for a while.
func (s *story) watchLag(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.node1.conninfo())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	const rows, pauseAt, resumeAt = 12, 3, 8
	every := 500 * time.Millisecond
	if s.quick {
		every = 200 * time.Millisecond
	}
	s.space()
	s.say("%s", s.bold(fmt.Sprintf("%8s%33s%33s", "", "node2 is behind by", "node3 is behind by")))
	s.say("%s", s.bold(fmt.Sprintf("%8s%s%s", "second", lagHeader, lagHeader)))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 1; i <= rows; i++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		note := ""
		switch i {
		case pauseAt:
			note = "  < node3: pg_wal_replay_pause()"
			_, err = query[any](ctx, s.node3.server, `SELECT pg_wal_replay_pause()`)
		case resumeAt:
			note = "  < node3: pg_wal_replay_resume()"
			_, err = query[any](ctx, s.node3.server, `SELECT pg_wal_replay_resume()`)
		}
		if err != nil {
			return err
		}
		found, err := conn.Query(ctx, `SELECT standby_node, replication_lag, apply_lag, time_lag::float8 FROM repl_status ORDER BY standby_node`)
		if err != nil {
			return err
		}
		lags, err := pgx.CollectRows(found, pgx.RowToStructByName[lag])
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%8.1f", (time.Duration(i) * every).Seconds())
		for _, l := range lags {
			line += l.String()
		}
		s.say("%s%s", line, s.dim(note))
	}
	return nil
}

const lagHeader = "     received   applied   seconds"

func (l lag) String() string {
	if l.Replication == nil || l.Apply == nil || l.Time == nil {
		return fmt.Sprintf("%13s%10s%10s", "?", "?", "?")
	}
	return fmt.Sprintf("%13s%10s%10.1f", bytesOf(*l.Replication), bytesOf(*l.Apply), *l.Time)
}

// findHeir chooses the standby that has received more of node1's WAL, and node2
// where both have the same: the other one can then follow it.
func (s *story) findHeir(ctx context.Context) error {
	var at [2]repmgr.NodeStatus
	for i, n := range []*node{s.node2, s.node3} {
		err := until(ctx, startLimit, n.name+" to know that node1 is gone", func(ctx context.Context) (err error) {
			if at[i], err = status(ctx, n); err == nil && at[i].Receiver != nil && at[i].Receiver.Status == "streaming" {
				err = errors.New("still streaming")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	s.say("node2 has node1's WAL up to %s, node3 up to %s.", at[0].ReceivedLSN, at[1].ReceivedLSN)
	s.heir, s.follower = s.node2, s.node3
	if at[1].ReceivedLSN > at[0].ReceivedLSN {
		s.heir, s.follower = s.node3, s.node2
		s.say("node3 has more: it has to be the new primary.")
	}
	return nil
}

func status(ctx context.Context, n *node) (repmgr.NodeStatus, error) {
	c, err := repmgr.Connect(ctx, n.conninfo())
	if err != nil {
		return repmgr.NodeStatus{}, err
	}
	defer c.Close()
	return c.Status(ctx)
}

// inStep waits until the other nodes have replayed what the first has written.
func (s *story) inStep(ctx context.Context, nodes []*node) error {
	first, err := status(ctx, nodes[0])
	if err != nil {
		return err
	}
	for _, n := range nodes[1:] {
		err := until(ctx, startLimit, n.name+" to catch up", func(ctx context.Context) error {
			st, err := status(ctx, n)
			if err == nil && st.ReplayedLSN < first.CurrentLSN {
				err = fmt.Errorf("replayed up to %s of %s", st.ReplayedLSN, first.CurrentLSN)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compare counts and sums up each table on each node.
func (s *story) compare(ctx context.Context, nodes []*node) error {
	header := []string{"Table", "Rows"}
	for _, n := range nodes {
		header = append(header, n.name)
	}
	rows, same := [][]string{append(header, "")}, true
	for _, table := range []string{"pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "receipts"} {
		found, errs := make([]string, len(nodes)), make([]error, len(nodes))
		var wg sync.WaitGroup
		for i, n := range nodes {
			wg.Go(func() { found[i], errs[i] = contents(ctx, n.server, table) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		count, _, _ := strings.Cut(found[0], " ")
		row, verdict := []string{table, count}, "same"
		for _, f := range found {
			if f != found[0] {
				verdict, same = "DIFFERENT", false
			}
			_, sum, _ := strings.Cut(f, " ")
			row = append(row, sum)
		}
		rows = append(rows, append(row, verdict))
	}
	s.table(rows)
	if !same {
		return errors.New("the nodes do not have the same rows")
	}
	return nil
}

// eventTable lists events as they happened; "repmgr cluster event" begins with
// the newest.
func (s *story) eventTable(events []repmgr.Event) {
	rows := [][]string{{"Time", "Name", "Event", "OK", "Details"}}
	for _, e := range slices.Backward(events) {
		ok := "t"
		if !e.Success {
			ok = "f"
		}
		details := strings.ReplaceAll(e.Details, s.page.dir+"/", "")
		rows = append(rows, []string{e.At.Local().Format("15:04:05.000"), e.Node, string(e.Type), ok, cut(details, 60)})
	}
	s.table(rows)
}

// logs shows the ends of the servers' logs, for whoever has to find out why
// something went wrong.
func (s *story) logs() {
	for _, srv := range s.servers {
		if tail := srv.logTail(8); tail != "" {
			s.say("\nThe end of %s's log:\n%s", srv.name, tail)
		}
	}
}
