package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/etcd"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// config is that of node 1, whose cluster has a name of its own for each test.
func config(t testing.TB, e *pgtest.Etcd) repmgr.Config {
	return repmgr.Config{
		NodeID: 1, ClusterName: t.Name(), Conninfo: "host=node1",
		EtcdEndpoints: e.Endpoints(), EtcdCACert: e.CACert, EtcdCert: e.Cert, EtcdKey: e.Key,
	}
}

func open(t testing.TB, cfg repmgr.Config) *etcd.Arbiter {
	t.Helper()
	a, err := etcd.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

// raw is a client of somebody else, to look at the keys from outside.
func raw(t testing.TB, e *pgtest.Etcd) etcdserverpb.KVClient {
	t.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(e.Endpoints(), "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return etcdserverpb.NewKVClient(conn)
}

func get(t testing.TB, c etcdserverpb.KVClient, key string) (value string, revision int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(5*time.Second))
	defer cancel()
	res, err := c.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(key)})
	require.NoError(t, err)
	for _, kv := range res.Kvs {
		value, revision = string(kv.Value), kv.ModRevision
	}
	return value, revision
}

func rule(term int64, seq int, primary int32) election.Rule {
	return election.Rule{Term: term, Seq: seq, Primary: primary, Voters: []int32{1, 2, election.Arbiter}, Sync: []int32{}}
}

func record(id repmgr.NodeID) repmgr.Record {
	name := fmt.Sprintf("node%d", id)
	return repmgr.Record{ID: id, Name: name, Active: true, Role: repmgr.RoleStandby, Location: "default", Priority: 100, Conninfo: "host=" + name}
}

func TestArbiter_HoldsABallotAndARuleInJSON(t *testing.T) {
	t.Parallel()
	e := pgtest.StartEtcd(t)
	cfg := config(t, e)
	cfg.EtcdPrefix, cfg.ClusterName = "/other/", "test"
	a, b := open(t, cfg), open(t, cfg)

	held, err := a.Look(t.Context())
	require.NoError(t, err)
	require.Equal(t, repmgr.ArbiterState{}, held)

	_, err = a.Pledge(t.Context(), ballot.Ballot{Node: 2, Term: 7, Candidate: "node2.4711"})
	require.NoError(t, err)
	nodes := []repmgr.Record{record(1), record(2)}
	require.NoError(t, a.Record(t.Context(), rule(7, 1, 2), nodes))
	want := repmgr.ArbiterState{
		Ballot: ballot.Ballot{Node: election.Arbiter, Term: 7, Candidate: "node2.4711"}, Rule: rule(7, 1, 2), Nodes: nodes,
	}
	held, err = b.Look(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, held)

	require.NoError(t, a.Announce(t.Context(), rule(7, 1, 2), record(2), time.Minute))
	held, err = b.Look(t.Context())
	require.NoError(t, err)
	require.Equal(t, record(2), held.Primary)
	c := raw(t, e)
	stored := func(name string) string { value, _ := get(t, c, "/other/test/"+name); return value }
	require.JSONEq(t, `{"node_id":-1,"term":7,"candidate":"node2.4711"}`, stored("ballot"))
	require.Contains(t, stored("rule"), `{"term":7,"seq":1,"primary_node_id":2,"voters":[1,2,-1],"quorum":false,"sync_standbys":[],"acks":0,"nodes":[{"node_id":1,`)
	require.Contains(t, stored("primary"), `{"term":7,"ttl_seconds":60,"node_id":2,`)
	require.Contains(t, stored("primary"), `"conninfo":"host=node2"`)
}

func TestArbiter_PledgesItselfOnceInATerm(t *testing.T) {
	t.Parallel()
	a := open(t, config(t, pgtest.StartEtcd(t)))
	_, err := a.Pledge(t.Context(), ballot.Ballot{Term: 5, Candidate: "node1.1"})
	require.NoError(t, err)
	for _, term := range []int64{4, 5} {
		held, err := a.Pledge(t.Context(), ballot.Ballot{Term: term, Candidate: "node1.1"})
		require.ErrorIs(t, err, ballot.ErrTerm)
		require.EqualError(t, err, fmt.Sprintf(`pledge term %d: refused: etcd holds the ballot "-1/5/node1.1"`, term))
		require.EqualValues(t, 5, held.Ballot.Term, "who is refused learns why")
	}
	_, err = a.Pledge(t.Context(), ballot.Ballot{Candidate: "node1.1"})
	require.Error(t, err)

	// A term that was opened without etcd is over as well.
	require.NoError(t, a.Record(t.Context(), rule(8, 1, 1), nil))
	held, err := a.Pledge(t.Context(), ballot.Ballot{Term: 8, Candidate: "node2.1"})
	require.ErrorIs(t, err, ballot.ErrTerm)
	require.EqualValues(t, 8, held.Rule.Term)
	held, err = a.Pledge(t.Context(), ballot.Ballot{Term: 9, Candidate: "node2.1"})
	require.NoError(t, err)
	require.Equal(t, repmgr.ArbiterState{Ballot: ballot.Ballot{Node: election.Arbiter, Term: 9, Candidate: "node2.1"}, Rule: rule(8, 1, 1)}, held)
}

func TestArbiter_OfRacingPledgesOfOneTermExactlyOneWins(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) {
			t.Parallel()
			cfg := config(t, pgtest.StartEtcdWith(t, pgtest.EtcdOptions{Members: members}))
			candidates := []*etcd.Arbiter{open(t, cfg), open(t, cfg), open(t, cfg)}
			for term := int64(1); term <= 100; term++ {
				var wg sync.WaitGroup
				errs := make([]error, len(candidates))
				for i, a := range candidates {
					wg.Go(func() {
						_, errs[i] = a.Pledge(t.Context(), ballot.Ballot{Term: term, Candidate: fmt.Sprint("node", i)})
					})
				}
				wg.Wait()
				var winners []string
				for i, err := range errs {
					if err == nil {
						winners = append(winners, fmt.Sprint("node", i))
					} else {
						require.ErrorIs(t, err, ballot.ErrTerm)
					}
				}
				require.Len(t, winners, 1, "term %d", term)
				held, err := candidates[0].Look(t.Context())
				require.NoError(t, err)
				require.Equal(t, ballot.Ballot{Node: election.Arbiter, Term: term, Candidate: winners[0]}, held.Ballot)
			}
		})
	}
}

func TestArbiter_ARuleNeverGoesBack(t *testing.T) {
	t.Parallel()
	cfg := config(t, pgtest.StartEtcd(t))
	a := open(t, cfg)
	record1 := []repmgr.Record{record(1)}
	holds := func(want election.Rule) {
		t.Helper()
		held, err := a.Look(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, held.Rule)
	}
	require.NoError(t, a.Record(t.Context(), rule(3, 2, 1), record1))
	require.NoError(t, a.Record(t.Context(), rule(3, 2, 1), record1), "it may be stored again")
	require.NoError(t, a.Record(t.Context(), rule(3, 1, 1), record1), "a newer one of its term holds it")
	holds(rule(3, 2, 1))
	require.ErrorIs(t, a.Record(t.Context(), rule(2, 9, 1), record1), ballot.ErrTerm)
	require.ErrorContains(t, a.Record(t.Context(), rule(3, 2, 2), record1), "another rule of that number, for primary 1 and not 2")
	require.Error(t, a.Record(t.Context(), election.Rule{}, nil))
	holds(rule(3, 2, 1))

	require.NoError(t, a.Record(t.Context(), rule(3, 2, 1), []repmgr.Record{record(1), record(2)}), "the same rule with other nodes")
	held, err := a.Look(t.Context())
	require.NoError(t, err)
	require.Len(t, held.Nodes, 2)

	// Whoever pledged itself to a new term takes nothing of the old one.
	_, err = a.Pledge(t.Context(), ballot.Ballot{Term: 4, Candidate: "node2.1"})
	require.NoError(t, err)
	require.ErrorIs(t, a.Record(t.Context(), rule(3, 3, 1), record1), ballot.ErrTerm)
	holds(rule(3, 2, 1))

	// Many writers, in any order.
	var wg sync.WaitGroup
	for seq := 1; seq <= 20; seq++ {
		wg.Go(func() {
			if err := a.Record(t.Context(), rule(4, seq, 2), record1); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	holds(rule(4, 20, 2))
}

func TestArbiter_APrimaryIsAnnouncedWhileItSaysSo(t *testing.T) {
	t.Parallel()
	e := pgtest.StartEtcd(t)
	cfg := config(t, e)
	a, c := open(t, cfg), raw(t, e)
	key := "/repmgr/" + cfg.ClusterName + "/primary"
	require.NoError(t, a.Record(t.Context(), rule(1, 1, 1), nil))

	const ttl = 2 * time.Second
	var revision int64
	pgtest.WaitFor(t, "five seconds of announcements", func() func(context.Context) error {
		start := time.Now()
		return func(context.Context) error {
			require.NoError(t, open(t, cfg).Announce(t.Context(), rule(1, 1, 1), record(1), ttl))
			value, at := get(t, c, key)
			require.NotEmpty(t, value, "it is there while it is announced")
			if revision == 0 {
				revision = at
			}
			require.Equal(t, revision, at, "watchers are woken once")
			if d := time.Since(start); d < 5*time.Second {
				return fmt.Errorf("only %s", d)
			}
			return nil
		}
	}())
	last := time.Now()
	pgtest.WaitFor(t, "the key to go", func(context.Context) error {
		if value, _ := get(t, c, key); value != "" {
			return fmt.Errorf("still %s", value)
		}
		return nil
	})
	gone := time.Since(last)
	t.Logf("gone %s after the last call, for a ttl of %s", gone.Round(time.Millisecond), ttl)
	require.Greater(t, gone, ttl-100*time.Millisecond)
	require.Less(t, gone, ttl+pgtest.Timeout(1500*time.Millisecond))

	require.NoError(t, a.Announce(t.Context(), rule(1, 1, 1), record(1), ttl), "it may come back")
	value, _ := get(t, c, key)
	require.Contains(t, value, "node1")
}

func TestArbiter_ADeposedPrimaryIsNotAnnounced(t *testing.T) {
	t.Parallel()
	e := pgtest.StartEtcd(t)
	cfg := config(t, e)
	a, c := open(t, cfg), raw(t, e)
	announced := func() string { value, _ := get(t, c, "/repmgr/"+cfg.ClusterName+"/primary"); return value }
	require.NoError(t, a.Record(t.Context(), rule(1, 1, 1), nil))
	require.NoError(t, a.Announce(t.Context(), rule(1, 1, 1), record(1), time.Minute))

	_, err := a.Pledge(t.Context(), ballot.Ballot{Term: 2, Candidate: "node2.1"})
	require.NoError(t, err)
	require.Contains(t, announced(), "node1", "an election is not its outcome")
	require.ErrorIs(t, a.Announce(t.Context(), rule(1, 1, 1), record(1), time.Minute), ballot.ErrTerm)

	require.NoError(t, a.Record(t.Context(), rule(2, 1, 2), nil))
	require.Empty(t, announced(), "the new rule takes the old primary away")
	require.ErrorIs(t, a.Announce(t.Context(), rule(1, 1, 1), record(1), time.Minute), ballot.ErrTerm)
	require.NoError(t, a.Announce(t.Context(), rule(2, 1, 2), record(2), time.Minute))
	require.Contains(t, announced(), "node2")
	require.NoError(t, a.Record(t.Context(), rule(2, 2, 2), nil))
	require.Contains(t, announced(), "node2", "a rule of the same term leaves it")
	require.Error(t, a.Announce(t.Context(), rule(2, 2, 2), record(2), 0))
}

func TestArbiter_SaysThatEtcdIsAway(t *testing.T) {
	t.Parallel()
	limit := pgtest.Timeout(etcd.Timeout + time.Second)
	calls := func(t *testing.T, a *etcd.Arbiter, limit time.Duration, within context.Context) (texts []string) {
		t.Helper()
		for name, call := range map[string]func() error{
			"look":     func() error { _, err := a.Look(within); return err },
			"pledge":   func() error { _, err := a.Pledge(within, ballot.Ballot{Term: 9, Candidate: "x"}); return err },
			"record":   func() error { return a.Record(within, rule(9, 1, 1), nil) },
			"announce": func() error { return a.Announce(within, rule(9, 1, 1), record(1), time.Second) },
		} {
			start := time.Now()
			err := call()
			require.ErrorIs(t, err, repmgr.ErrConnect, name)
			require.NotErrorIs(t, err, ballot.ErrTerm)
			require.NotEmpty(t, repmgr.Hint(err))
			require.Less(t, time.Since(start), limit, name)
			texts = append(texts, err.Error())
		}
		return texts
	}

	t.Run("killed, and it returns", func(t *testing.T) {
		t.Parallel()
		e := pgtest.StartEtcd(t)
		a := open(t, config(t, e))
		_, err := a.Pledge(t.Context(), ballot.Ballot{Term: 3, Candidate: "node1.1"})
		require.NoError(t, err)
		e.Kill()
		_, err = a.Look(t.Context())
		require.ErrorIs(t, err, repmgr.ErrConnect) // the connection that was lost, or a new one refused
		for _, text := range calls(t, a, time.Second, t.Context()) {
			require.Regexp(t, `^(look|pledge term 9|record rule 9/1|announce primary of term 9): connect to etcd: 127\.0\.0\.1:\d+: connection refused$`, text)
		}
		var lost *repmgr.ConnectError
		_, err = a.Look(t.Context())
		require.ErrorAs(t, err, &lost)
		require.Equal(t, repmgr.ReachRefused, lost.Reach)
		down := time.Now()
		pgtest.WaitFor(t, "etcd to be away for long", func(ctx context.Context) error {
			_, err := a.Look(ctx)
			require.ErrorIs(t, err, repmgr.ErrConnect)
			if d := time.Since(down); d < 4*time.Second {
				return fmt.Errorf("only %s", d)
			}
			return nil
		})
		e.StartAgain()
		start := time.Now()
		pgtest.WaitFor(t, "etcd to answer again", func(ctx context.Context) error {
			held, err := a.Look(ctx)
			if err == nil {
				require.EqualValues(t, 3, held.Ballot.Term, "the ballot was on disk")
			}
			return err
		})
		require.Less(t, time.Since(start), pgtest.Timeout(time.Second))
	})
	t.Run("hung, and it goes on", func(t *testing.T) {
		t.Parallel()
		e := pgtest.StartEtcd(t)
		a := open(t, config(t, e))
		_, err := a.Look(t.Context())
		require.NoError(t, err)
		e.Members[0].Stop()
		for _, text := range calls(t, a, limit, t.Context()) {
			require.Contains(t, text, ": no answer in time")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		calls(t, a, pgtest.Timeout(time.Second), ctx)
		canceled, stop := context.WithCancel(t.Context())
		stop()
		_, err = a.Look(canceled)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, repmgr.ErrConnect, "nobody waited for an answer")
		e.Members[0].Continue()
		pgtest.WaitFor(t, "etcd to answer again", func(ctx context.Context) error { _, err := a.Look(ctx); return err })
	})
	t.Run("behind a network that drops, or mute", func(t *testing.T) {
		t.Parallel()
		hole, port := pgtest.Blackhole(t)
		mute, mutePort := pgtest.Mute(t)
		for _, endpoint := range []string{fmt.Sprintf("%s:%d", hole, port), fmt.Sprintf("%s:%d", mute, mutePort)} {
			calls(t, open(t, repmgr.Config{ClusterName: "test", EtcdEndpoints: endpoint}), limit, t.Context())
		}
	})
	t.Run("without a majority of its members", func(t *testing.T) {
		t.Parallel()
		e := pgtest.StartEtcdWith(t, pgtest.EtcdOptions{Members: 3})
		a := open(t, config(t, e))
		e.Members[0].Kill()
		e.Members[1].Kill()
		calls(t, a, limit, t.Context())
	})
}

func TestArbiter_OneMemberOfThreeMayBeAway(t *testing.T) {
	t.Parallel()
	e := pgtest.StartEtcdWith(t, pgtest.EtcdOptions{Members: 3})
	a := open(t, config(t, e))
	term := int64(0)
	pledge := func(ctx context.Context) error {
		term++ // a vote that was not confirmed may be stored
		_, err := a.Pledge(ctx, ballot.Ballot{Term: term, Candidate: "node1.1"})
		return err
	}
	for _, m := range e.Members { // the leader is among them
		m.Kill()
		start := time.Now()
		pgtest.WaitFor(t, "a pledge without "+m.Name, pledge)
		t.Logf("%s killed: a pledge after %s", m.Name, time.Since(start).Round(time.Millisecond))
		for range 20 {
			require.NoError(t, pledge(t.Context()))
		}
		m.StartAgain()

		m.Stop()
		start = time.Now()
		pgtest.WaitFor(t, "a pledge while "+m.Name+" hangs", pledge)
		t.Logf("%s hangs: a pledge after %s", m.Name, time.Since(start).Round(time.Millisecond))
		start = time.Now()
		for range 20 {
			require.NoError(t, pledge(t.Context()))
		}
		require.Less(t, time.Since(start), pgtest.Timeout(3*time.Second), "the hung member costs no time")
		m.Continue()
	}
}

func TestArbiter_TLS(t *testing.T) {
	t.Parallel()
	e := pgtest.StartEtcdWith(t, pgtest.EtcdOptions{TLS: true})
	cfg := config(t, e)
	_, err := open(t, cfg).Pledge(t.Context(), ballot.Ballot{Term: 1, Candidate: "node1.1"})
	require.NoError(t, err)

	cfg.EtcdEndpoints = strings.ReplaceAll(e.Endpoints(), "https://", "")
	_, err = open(t, cfg).Look(t.Context())
	require.NoError(t, err, "certificates without a scheme mean TLS")

	stranger := cfg
	stranger.EtcdCert, stranger.EtcdKey = "", ""
	_, err = open(t, stranger).Look(t.Context())
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.Contains(t, repmgr.Hint(err), "etcd_cert") // the text is that of a lost connection as well

	distrusting := cfg
	distrusting.EtcdCACert, distrusting.EtcdEndpoints = "", e.Endpoints()
	_, err = open(t, distrusting).Look(t.Context())
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.ErrorContains(t, err, "unknown authority")

	plain := repmgr.Config{ClusterName: "test", EtcdEndpoints: cfg.EtcdEndpoints}
	_, err = open(t, plain).Look(t.Context())
	require.ErrorIs(t, err, repmgr.ErrConnect)
}

func TestArbiter_RefusesKeysOfOthers(t *testing.T) {
	t.Parallel()
	e := pgtest.StartEtcd(t)
	cfg := config(t, e)
	_, err := raw(t, e).Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/repmgr/" + cfg.ClusterName + "/rule"), Value: []byte("mine")})
	require.NoError(t, err)
	a := open(t, cfg)
	_, err = a.Pledge(t.Context(), ballot.Ballot{Term: 1, Candidate: "node1.1"})
	require.ErrorContains(t, err, `/rule of etcd: it holds "mine"`)
	require.False(t, errors.Is(err, repmgr.ErrConnect))
	require.Contains(t, repmgr.Hint(err), "etcd_prefix")
}
