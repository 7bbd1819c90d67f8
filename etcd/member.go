package etcd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pgrepmgr/repmgr"
)

// member is one of etcd_endpoints, with a connection of its own: requests over
// one for all go to the member that hangs as well. These are the calls of etcd's
// protocol as it defines them. Its own client waits for an etcd that is away
// until the time is over, and does not say why: here that is known at once.
type member struct {
	address string // host:port
	conn    *grpc.ClientConn
	kv      etcdserverpb.KVClient
	lease   etcdserverpb.LeaseClient
	dialled atomic.Value // the repmgr.Reach of when we last did
}

// newMember connects to nothing yet. Without security there is no TLS.
func newMember(address string, security *tls.Config) (*member, error) {
	m := &member{address: address}
	transport := insecure.NewCredentials()
	if security != nil {
		transport = credentials.NewTLS(security)
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(transport),
		grpc.WithContextDialer(m.dial),
		// An etcd that was away for long is noticed soon after it returned.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: Timeout,
		}),
		// A packet that nobody confirms for Timeout ends the connection, so that a
		// network that was cut and has healed is noticed too.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: Timeout}),
	)
	if err != nil {
		return nil, err
	}
	m.conn, m.kv, m.lease = conn, etcdserverpb.NewKVClient(conn), etcdserverpb.NewLeaseClient(conn)
	return m, nil
}

// dial leaves out of the error what every message here says already.
func (m *member) dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: Timeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	m.dialled.Store(reach(err))
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	if call := (*os.SyscallError)(nil); errors.As(err, &call) {
		err = call.Err
	}
	return conn, err
}

// reach says how a host answered.
func reach(err error) repmgr.Reach {
	var timed net.Error
	switch {
	case err == nil:
		return repmgr.ReachOK
	case errors.Is(err, syscall.ECONNREFUSED):
		return repmgr.ReachRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return repmgr.ReachNoRoute
	case errors.As(err, new(*net.DNSError)):
		return repmgr.ReachNoHost
	case errors.As(err, &timed) && timed.Timeout():
		return repmgr.ReachTimeout
	}
	return repmgr.ReachBroken
}

// transaction asks a member that knows of a leader: one without says so.
func (m *member) transaction(ctx context.Context, t *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	res, err := m.kv.Txn(metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader), t)
	if err != nil {
		return nil, answerErrors{{m, err}}
	}
	return res, nil
}

// read returns what etcd holds at one instant, linearizable.
func (m *member) read(ctx context.Context, keys [3]string) (h holding, err error) {
	res, err := m.transaction(ctx, &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{get(keys[ballotKey]), get(keys[ruleKey]), get(keys[primaryKey])}})
	if err != nil {
		return h, err
	}
	var rule storedRule
	for i, into := range []any{ballotKey: &h.Ballot, ruleKey: &rule, primaryKey: &h.announced} {
		for _, kv := range res.Responses[i].GetResponseRange().Kvs {
			h.values[i], h.revisions[i] = string(kv.Value), kv.ModRevision
			if i == primaryKey {
				h.lease = kv.Lease
			}
			if err := json.Unmarshal(kv.Value, into); err != nil {
				return h, repmgr.WithHint(fmt.Errorf("read key %s of etcd: it holds %.60q, which is not ours: %w", keys[i], kv.Value, err),
					"Something else writes keys there. Choose another etcd_prefix, or delete the key.")
			}
		}
	}
	h.Rule, h.Nodes, h.Primary = rule.Rule, rule.Nodes, h.announced.Record
	return h, nil
}

// keepAlive lets a lease begin anew, and reports whether it was still there.
func (m *member) keepAlive(ctx context.Context, lease int64) (alive bool, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream
	defer cancel()
	stream, err := m.lease.LeaseKeepAlive(ctx)
	if err == nil {
		// Why the stream has ended only Recv says.
		if err = stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: lease}); err == nil || errors.Is(err, io.EOF) {
			var res *etcdserverpb.LeaseKeepAliveResponse
			if res, err = stream.Recv(); err == nil {
				return res.TTL > 0, nil
			}
		}
	}
	return false, answerErrors{{m, err}}
}

// update reads what etcd holds, lets change decide what to store, and stores
// it if nothing has changed meanwhile; else it begins again, until ctx or
// Timeout ends it. It returns what was read before the change.
func (a *Arbiter) update(outer context.Context, doing string, change func(context.Context, holding, *member) ([]*etcdserverpb.RequestOp, error)) (h holding, err error) {
	ctx, cancel := context.WithTimeout(outer, Timeout)
	defer cancel()
	for {
		var m *member
		var ops []*etcdserverpb.RequestOp
		if h, m, err = a.read(ctx); err == nil {
			ops, err = change(ctx, h, m)
		}
		if err != nil || len(ops) == 0 {
			return h, explain(outer, doing, err)
		}
		unchanged := make([]*etcdserverpb.Compare, len(a.keys))
		for i, key := range a.keys {
			unchanged[i] = &etcdserverpb.Compare{Key: []byte(key), Target: etcdserverpb.Compare_MOD, TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: h.revisions[i]}}
		}
		// The member that has just answered is the one to trust with it.
		res, err := m.transaction(ctx, &etcdserverpb.TxnRequest{Compare: unchanged, Success: ops})
		if err != nil {
			return h, explain(outer, doing, err)
		}
		if res.Succeeded {
			return h, nil
		}
	}
}

// read asks all members at once. The first answer counts.
func (a *Arbiter) read(ctx context.Context) (holding, *member, error) {
	type answer struct {
		held holding
		from *member
		err  error
	}
	answers := make(chan answer, len(a.members)) // each member sends one
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, m := range a.members {
		wg.Go(func() {
			h, err := m.read(ctx, a.keys)
			answers <- answer{h, m, err}
		})
	}
	var faults answerErrors
	for range a.members {
		got := <-answers
		var fault answerErrors
		if !errors.As(got.err, &fault) {
			return got.held, got.from, got.err
		}
		faults = append(faults, fault...)
	}
	return holding{}, nil, faults
}

func get(key string) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: []byte(key)}}}
}

// put stores a value for as long as the lease lives, 0 for ever.
func put(key, value string, lease int64) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease}}}
}

func remove(key string) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(key)}}}
}

// answerError is what a member answered instead of what it was asked for.
type answerError struct {
	m   *member
	err error
}

func (e *answerError) Unwrap() error { return e.err }

func (e *answerError) Error() string {
	message := status.Convert(e.err).Message()
	switch e.code() {
	case codes.DeadlineExceeded:
		message = "no answer in time"
	case codes.Canceled:
		message = "connection closed"
	case codes.Unavailable:
		if _, why, ok := strings.Cut(message, `desc = "`); ok {
			why = strings.TrimPrefix(strings.TrimPrefix(why, "transport: "), "Error while dialing: ")
			message = strings.TrimSuffix(why, `"`)
		}
	}
	return e.m.address + ": " + message
}

// code is what kind of answer it is. A member that sees our deadline pass before
// we do says so in words only.
func (e *answerError) code() codes.Code {
	s := status.Convert(e.err)
	if s.Code() == codes.Unknown && s.Message() == context.DeadlineExceeded.Error() {
		return codes.DeadlineExceeded
	}
	return s.Code()
}

// away reports whether the member could not be reached, did not answer in time,
// or has no leader: it said nothing about the question.
func (e *answerError) away() bool {
	switch e.code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// reach is how the member answered: one that could be dialled and is away after
// all has hung, or its connection is lost.
func (e *answerError) reach() repmgr.Reach {
	dialled, _ := e.m.dialled.Load().(repmgr.Reach)
	switch {
	case e.code() == codes.DeadlineExceeded:
		return repmgr.ReachTimeout
	case dialled == "" || dialled == repmgr.ReachOK:
		return repmgr.ReachBroken
	}
	return dialled
}

// answerErrors are those of all members that were asked.
type answerErrors []*answerError

func (e answerErrors) Error() string {
	texts := make([]string, len(e))
	for i, f := range e {
		texts[i] = f.Error()
	}
	return strings.Join(texts, "; ")
}

// explain makes an error of update one of the library's.
func explain(ctx context.Context, doing string, err error) error {
	var faults answerErrors
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &faults):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(ctx.Err(), context.Canceled): // not etcd's fault
		return fmt.Errorf("%s in etcd: %w", doing, context.Cause(ctx))
	}
	for _, f := range faults {
		if !f.away() {
			return repmgr.WithHint(fmt.Errorf("%s in etcd: %w", doing, f),
				"etcd answers, and refuses. Where it asks for users, the common name of etcd_cert must be one that may read and write the keys below etcd_prefix.")
		}
	}
	return repmgr.WithHint(fmt.Errorf("%s: %w", doing, &repmgr.ConnectError{Target: "etcd", Reach: faults[0].reach(), Err: faults}),
		"Does etcd run at etcd_endpoints, and do more than half of its members? Does it want TLS, or a certificate (etcd_cacert, etcd_cert, etcd_key)? While it is away the primary goes on as long as it sees all nodes; a failover has to wait.")
}
