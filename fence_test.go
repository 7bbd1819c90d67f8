package repmgr_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
)

// patient lets the Monitor of a frozen server leave it alone.
func patient(c *repmgr.Config) { c.HangTimeout = time.Hour }

// A primary that is silent, and that nobody is sure to stop, is replaced only
// where an operator forces it: why is said by name, beforehand as well.
func TestFailover_NotFromAPrimaryThatNobodyStops(t *testing.T) {
	tests := map[string]struct {
		change    func(t *testing.T, c *repmgr.Config)
		unguarded election.Unguarded
	}{
		"manual": {func(_ *testing.T, c *repmgr.Config) { c.Failover = repmgr.FailoverManual }, election.UnguardedManual},
		"unable": {func(t *testing.T, c *repmgr.Config) { c.DataDirectory = t.TempDir() }, election.UnguardedUnable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousOff)
			_, stop := nodes[0].monitor(t)
			for _, n := range nodes[1:] {
				n.monitor(t)
			}
			waitReady(t, nodes, 3, repmgr.SynchronousOff)
			stop()
			test.change(t, &nodes[0].cfg)
			nodes[0].monitor(t)
			pgtest.WaitFor(t, "explain to foretell it", func(ctx context.Context) error {
				e, err := nodes[1].Explain(ctx, repmgr.ExplainOptions{})
				if err == nil && e.Forecast.Unfenced != test.unguarded {
					err = fmt.Errorf("unfenced: %q", e.Forecast.Unfenced)
				}
				return err
			})
			st, err := nodes[1].ServiceStatus(t.Context())
			require.NoError(t, err)
			require.Nil(t, st.Nodes[0].Monitor.LeaseLeft, "it does not stop itself")
			pgtest.WaitFor(t, "the others to have seen it", func(ctx context.Context) error {
				st, err := nodes[1].ServiceStatus(ctx)
				if err == nil && (st.Nodes[1].Monitor.Guarded || st.Nodes[2].Monitor.Guarded) {
					err = errors.New("not yet")
				}
				return err
			})
			nodes[0].Freeze()
			e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
			require.Contains(t, e.Details, string(election.RefusedUnfenced))
			require.Contains(t, e.Details, string(test.unguarded))
			require.Equal(t, "t", nodes[1].QueryString(t, `SELECT pg_is_in_recovery()`))
			_, err = nodes[2].Failover(t.Context(), repmgr.FailoverOptions{})
			require.ErrorContains(t, err, string(election.RefusedUnfenced))
			_, err = nodes[2].Failover(t.Context(), repmgr.FailoverOptions{Force: true})
			require.NoError(t, err)
		})
	}
}

// Daemons that were restarted while the primary is cut off go by what was kept of
// it; where that is missing, they refuse by name.
func TestFailover_OfAPrimaryThatWasNotSeenSince(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprintf("kept %v", kept), func(t *testing.T) {
			t.Parallel()
			nodes := startNodes(t, 3, repmgr.SynchronousOff)
			patient(&nodes[0].cfg)
			nodes[0].monitor(t)
			startMonitors(t, nodes[1:])
			waitReady(t, nodes, 3, repmgr.SynchronousOff)
			for _, n := range nodes[1:] {
				pgtest.WaitFor(t, "what is kept of the primary", func(context.Context) error {
					if k := readKept(t, n); k.Guard == nil || !k.Guard.CanFence || len(k.Nodes) != 3 {
						return fmt.Errorf("%+v", k)
					}
					return nil
				})
			}
			stopMonitors(nodes[1:])
			if !kept {
				for _, n := range nodes[1:] {
					require.NoError(t, os.Remove(filepath.Join(n.Dir, "repmgr_nodes.json")))
				}
			}
			nodes[0].Freeze()
			for _, n := range nodes[1:] {
				n.monitor(t)
			}
			if kept {
				waitPrimary(t, nodes[1:]...)
				return
			}
			e := nodes[1].events.wait(t, repmgr.EventFailoverRefused)
			require.Contains(t, e.Details, string(election.UnguardedUnknown))
		})
	}
}

func readKept(t *testing.T, n *node) (k struct {
	Nodes []repmgr.Record `json:"nodes"`
	Guard *struct {
		CanFence bool `json:"can_fence"`
	} `json:"guard"`
},
) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "repmgr_nodes.json"))
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return k
}

// alone is a primary whose two standbys, which a rule names, accept connections and
// say nothing: its Monitor is in contact with nobody.
func alone(t *testing.T, change ...func(*repmgr.Config)) *node {
	t.Helper()
	n := startPrimary(t, append(change, automatic(repmgr.SynchronousOff))...)
	n.cfg.DataDirectory = n.Dir
	host, port := pgtest.Mute(t)
	n.Exec(t, `INSERT INTO repmgr.nodes (node_id, node_name, type, conninfo, repluser, config_file) SELECT i, 'node' || i, 'standby', $1, 'postgres', '' FROM generate_series(2, 3) i`,
		n.Conninfo(fmt.Sprintf("host=%s", host), fmt.Sprintf("port=%d", port)))
	n.Exec(t, `INSERT INTO repmgr.rules (term, seq, primary_node_id, voters, quorum, sync_standbys, acks) VALUES (1, 1, 1, '{1,2,3}', false, '{}', 0)`)
	return n
}

func (n *node) waitStopped(t *testing.T) {
	t.Helper()
	pgtest.WaitFor(t, "the server to be stopped", func(context.Context) error {
		if n.Started() {
			return errors.New("it runs")
		}
		return nil
	})
}

// stall makes what writes standby.signal wait, as a disk that does not answer does,
// until the returned func is called.
func stall(t *testing.T, dir string) (end func()) {
	t.Helper()
	fifo := filepath.Join(dir, "standby.signal.tmp") // its opening waits for a reader
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	var reader *os.File
	t.Cleanup(func() { reader.Close() })
	return func() {
		var err error
		reader, err = os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		require.NoError(t, err)
	}
}

// A fence asks the disk for nothing: the server ends first, stays down while the
// marks of a standby can not be written, whoever starts it, and comes back as a
// standby when they can.
func TestFence_EndsTheServerBeforeItsMarks(t *testing.T) {
	t.Parallel()
	n := alone(t)
	thaw := stall(t, n.Dir)
	n.monitor(t)
	n.waitStopped(t)
	require.NoFileExists(t, filepath.Join(n.Dir, "standby.signal"))
	_ = n.TryStart() // as systemd would
	n.waitStopped(t)
	require.NoFileExists(t, filepath.Join(n.Dir, "standby.signal"))
	require.Contains(t, n.events.wait(t, repmgr.EventFence).Details, "no contact to a majority")
	require.Contains(t, n.events.wait(t, repmgr.EventFence).Details, "does not answer")
	thaw()
	pgtest.WaitFor(t, "the server to be back as a standby", func(ctx context.Context) error {
		s, err := repmgr.Connect(ctx, n.Conninfo())
		if err != nil {
			return err
		}
		defer s.Close()
		if st, err := s.Status(ctx); err != nil || !st.InRecovery {
			return fmt.Errorf("%+v %w", st, err)
		}
		return nil
	})
	require.NoFileExists(t, filepath.Join(n.Dir, "repmgr_fenced"))
}

// The watchdog's fence is the same.
func TestWatchdog_EndsTheServerBeforeItsMarks(t *testing.T) {
	t.Parallel()
	host, port := pgtest.Mute(t)
	n, tell, ended := guarded(t, func(n *node) string { return n.Conninfo("host="+host, fmt.Sprintf("port=%d", port)) })
	thaw := stall(t, n.Dir)
	left := 1.0
	tell(&repmgr.Beat{PID: 4711, Left: &left, Dir: n.Dir, Shown: true})
	n.waitStopped(t)
	require.NoFileExists(t, filepath.Join(n.Dir, "standby.signal"))
	thaw()
	pgtest.WaitFor(t, "the marks", func(context.Context) error {
		_, err := os.Stat(filepath.Join(n.Dir, "repmgr_fenced"))
		return err
	})
	require.FileExists(t, filepath.Join(n.Dir, "standby.signal"))
	tell(&repmgr.Beat{Bye: true})
	require.NoError(t, <-ended)
}

// A machine that slept has had no contact all the while, whatever the clock says
// that stood still.
func TestFence_CountsTheSleepOfTheMachine(t *testing.T) {
	t.Parallel()
	n := alone(t, func(c *repmgr.Config) { c.FenceTimeout = time.Hour })
	m, err := repmgr.NewMonitor(n.cfg)
	require.NoError(t, err)
	sleep := m.Sleep()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); require.NoError(t, <-done) }()
	pgtest.WaitFor(t, "a lease", func(context.Context) error {
		if s := m.Status(); s.Lease == nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	sleep(30 * time.Minute)
	pgtest.WaitFor(t, "the lease to be shorter", func(context.Context) error {
		if s := m.Status(); s.Lease == nil || *s.Lease > 30*time.Minute {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	sleep(30 * time.Minute)
	require.Contains(t, n.events.wait(t, repmgr.EventFence).Details, "no contact to a majority")
}

// A pause that reached the primary alone keeps nobody from an election: the lease
// counts on. One that a majority holds suspends it.
func TestFence_Paused(t *testing.T) {
	t.Parallel()
	n := alone(t)
	setFile(t, n, "repmgr.paused", "1/on/1")
	m, _ := n.monitor(t)
	pgtest.WaitFor(t, "it to be said", func(context.Context) error {
		if s := m.Status(); !strings.Contains(s.Error, "keeps its lease") {
			return errors.New(s.Error)
		}
		return nil
	})
	require.Contains(t, n.events.wait(t, repmgr.EventFence).Details, "no contact to a majority")

	nodes, monitors := startCluster(t, 3, repmgr.SynchronousOff)
	pgtest.WaitFor(t, "the lease to begin", func(context.Context) error {
		if s := monitors[0].Status(); s.Lease == nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	res, err := nodes[1].Pause(t.Context(), repmgr.PauseOptions{})
	require.NoError(t, err)
	require.Empty(t, res.Warning)
	pgtest.WaitFor(t, "the lease to be suspended", func(context.Context) error {
		if s := monitors[0].Status(); s.Lease != nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	nodes[1].Freeze()
	nodes[2].Freeze()
	nodes[0].outliveLease(t)
}

// outliveLease waits until the primary has written its signs of life for longer than any lease.
func (n *node) outliveLease(t *testing.T) {
	t.Helper()
	begin := n.QueryString(t, `SELECT clock_timestamp()`)
	pgtest.WaitFor(t, "a heartbeat after all leases have ended", func(context.Context) error {
		if !pgtest.Query[bool](t, n.Server, `SELECT at > $1::timestamptz + interval '6 s' FROM repmgr.heartbeat`, begin) {
			return errors.New("not yet")
		}
		return nil
	})
	require.Equal(t, "f", n.QueryString(t, `SELECT pg_is_in_recovery()`))
}

// Voters that reject the login of a primary's daemon are no reason to stop it while
// their WAL receivers reply; when those end, it is stopped.
func TestFence_NotForARejectedLogin(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			nodes, _ := startCluster(t, 3, mode)
			stopMonitors(nodes)
			for _, n := range nodes[1:] {
				hba := filepath.Join(n.Dir, "pg_hba.conf")
				text, err := os.ReadFile(hba)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(hba, append([]byte("host all all all reject\n"), text...), 0o600))
				n.Signal(syscall.SIGHUP)
			}
			m, _ := nodes[0].monitor(t)
			pgtest.WaitFor(t, "the rejection to be named", func(context.Context) error {
				if s := m.Status(); !strings.Contains(s.Error, "rejects the login") || s.Lease == nil {
					return errors.New(s.Error)
				}
				return nil
			})
			nodes[0].outliveLease(t)
			nodes[1].Freeze()
			nodes[2].Freeze()
			require.Contains(t, nodes[0].events.wait(t, repmgr.EventFence).Details, "no contact to a majority")
		})
	}
}

// rejectLogins makes the server reject every login over the network but replication.
func (n *node) rejectLogins(t *testing.T) {
	t.Helper()
	hba := filepath.Join(n.Dir, "pg_hba.conf")
	text, err := os.ReadFile(hba)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(hba, append([]byte("host all all all reject\n"), text...), 0o600))
	n.Signal(syscall.SIGHUP)
	pgtest.WaitFor(t, "the login to be rejected", func(ctx context.Context) error {
		s, err := repmgr.Connect(ctx, n.Conninfo())
		if err == nil {
			s.Close()
			return errors.New("it is not")
		}
		return nil
	})
}

// Where every server rejects the daemons, the primary's own, too, nobody is seen any
// more. With off a primary is stopped then. With quorum it goes on as long as the
// others are there to reject the login: what it acknowledges, standbys have.
func TestFence_RejectedByItsOwnServer(t *testing.T) {
	for _, mode := range []repmgr.SynchronousMode{repmgr.SynchronousOff, repmgr.SynchronousQuorum} {
		for _, how := range []string{"daemons anew", "sessions ended"} {
			t.Run(string(mode)+", "+how, func(t *testing.T) {
				t.Parallel()
				nodes := startNodes(t, 3, mode)
				var stops []func()
				for _, n := range nodes {
					_, stop := n.monitor(t)
					stops = append(stops, stop)
				}
				waitReady(t, nodes, 3, mode)
				nodes[0].Exec(t, `CREATE TABLE written (at timestamptz)`)
				waitRuleKept(t, nodes[0])
				if how == "daemons anew" {
					for _, stop := range stops {
						stop()
					}
				}
				var conns []*pgx.Conn // of a client, from before
				for _, n := range nodes {
					conns = append(conns, n.Conn(t))
					n.rejectLogins(t)
				}
				ask := func(conn *pgx.Conn, sql string, args ...any) (text string) {
					require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&text))
					return text
				}
				m := nodes[0].daemon
				if how == "daemons anew" {
					for _, n := range nodes {
						n.monitor(t)
					}
					m = nodes[0].daemon
				} else {
					for _, conn := range conns {
						ask(conn, `SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity WHERE application_name LIKE 'repmgr%' AND pid <> pg_backend_pid()`)
					}
				}
				if mode == repmgr.SynchronousQuorum {
					begin := ask(conns[0], `SELECT clock_timestamp()::text`)
					pgtest.WaitFor(t, "a commit after all leases would have ended", func(context.Context) error {
						if ask(conns[0], `INSERT INTO written VALUES (clock_timestamp()) RETURNING (at > $1::timestamptz + interval '6 s')::text`, begin) != "true" {
							return errors.New("not yet")
						}
						return nil
					})
					require.Contains(t, m.Status().Error, "rejects the login")
					require.NotNil(t, m.Status().Lease, "it is guarded")
					require.Equal(t, "quorum quorum", ask(conns[0], `SELECT string_agg(sync_state, ' ') FROM pg_stat_replication WHERE state = 'streaming'`), "they acknowledge its commits")
					nodes[1].Freeze()
					nodes[2].Freeze()
				}
				e := nodes[0].events.wait(t, repmgr.EventFence)
				require.Contains(t, e.Details, "no contact to a majority")
				require.Contains(t, e.Details, "its own server rejects the login")
			})
		}
	}
}

// waitRuleKept waits until the daemon of the primary has kept its newest rule.
func waitRuleKept(t *testing.T, n *node) {
	t.Helper()
	want := n.QueryString(t, `SELECT format('%s/%s', term, seq) FROM repmgr.rules ORDER BY term DESC, seq DESC LIMIT 1`)
	pgtest.WaitFor(t, "the rule to be kept", func(context.Context) error {
		var k struct {
			Rules []election.Rule `json:"rules"`
		}
		text, err := os.ReadFile(filepath.Join(n.Dir, "repmgr_nodes.json"))
		if err == nil {
			err = json.Unmarshal(text, &k)
		}
		if err == nil && (len(k.Rules) == 0 || fmt.Sprintf("%d/%d", k.Rules[0].Term, k.Rules[0].Seq) != want) {
			err = fmt.Errorf("%+v, not %s", k.Rules, want)
		}
		return err
	})
}

// The watchdog device is fed while the lease holds, and let go when there is no
// primary any more. A file takes what a device would be told.
func TestFence_FeedsTheWatchdogDevice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "watchdog")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	n := alone(t, func(c *repmgr.Config) { c.WatchdogDevice, c.WatchdogRequired = path, true })
	n.monitor(t)
	n.events.wait(t, repmgr.EventFence)
	pgtest.WaitFor(t, "the device to be fed and let go", func(context.Context) error {
		if text, err := os.ReadFile(path); err != nil || !regexp.MustCompile(`^1+V$`).Match(text) {
			return fmt.Errorf("%q %w", text, err)
		}
		return nil
	})
}

// Without a device that is required the daemon does not count as one that can fence.
func TestFence_RequiredWatchdogDevice(t *testing.T) {
	t.Parallel()
	n := startPrimary(t, automatic(repmgr.SynchronousOff), func(c *repmgr.Config) {
		c.WatchdogDevice, c.WatchdogRequired = filepath.Join(t.TempDir(), "missing"), true
	})
	n.cfg.DataDirectory = n.Dir
	n.monitor(t)
	e := n.events.wait(t, repmgr.EventFenceAbility)
	require.False(t, e.Success)
	require.Contains(t, e.Details, "watchdog_device")
	st, err := n.ServiceStatus(t.Context())
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(st.Issues), "can not stop its server")
}

// The mark of a fence that the server has outlived goes, whoever started the server since: it would make a standby of a
// primary that somebody shuts down.
func TestMonitor_VoidsTheMarkOfAFence(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 2, repmgr.SynchronousOff)
	mark := filepath.Join(nodes[0].Dir, postmaster.FencedMark)
	require.NoError(t, os.WriteFile(mark, []byte("a test\n"), 0o600))
	old := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(mark, old, old))
	pgtest.WaitFor(t, "the mark to go", func(context.Context) error {
		if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("it is there (%w)", err)
		}
		return nil
	})
}
