package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/postgres"
)

// guardHang fences a local primary that does not answer new connections for hang_timeout, at the
// latest a quarter of it later. Sessions that are open may still work, but nobody else can
// connect. It does nothing while failover is paused, because no other node would take over.
func (r activeGuard) guardHang(ctx context.Context) {
	var since time.Time // when the first of the attempts began that have got no answer
	for {
		s := r.settings.Load()
		rest := s.HangTimeout / 4 // each check costs the server a new process
		if !since.IsZero() {
			rest = s.HangTimeout / 10
		}
		if r.watch.Rest(ctx, rest, nil) != nil {
			return
		}
		peers := r.watch.Peers()
		me := voters.PeerOf(peers, s.Node)
		begun, limit := time.Now(), s.HangTimeout
		if !since.IsZero() {
			limit = max(minHangCheck, s.HangTimeout-time.Since(since))
		}
		switch {
		case !s.Automatic || election.Paused(peers) || me.Running != election.Primary || me.Role == election.Witness || !s.hangs(ctx, r.watch.Voter(me.ID).WithoutTLS(), limit):
			since = time.Time{}
		case since.IsZero():
			since = begun
		case time.Since(since) >= s.HangTimeout:
			r.Fence(ctx, fmt.Sprintf("new connections got no answer for hang_timeout (%s)", s.HangTimeout))
			since = time.Time{}
		}
	}
}

// minHangCheck is how long a server may take at least to answer one attempt.
const minHangCheck = time.Second

// hangs reports whether a new connection to the local server gets no answer within limit, or
// within the connect_timeout of its conninfo where that is shorter. Where TLS is known not to
// be needed, plain spares the server the second connection of a TLS negotiation.
func (s *Settings) hangs(ctx context.Context, plain bool, limit time.Duration) bool {
	dsn := s.Conninfo
	if params, err := conninfo.Parse(dsn); plain && err == nil {
		params["sslmode"] = "disable"
		dsn = conninfo.Format(params)
	}
	cfg, err := postgres.ConnConfig(dsn)
	if err != nil {
		return false
	}
	cfg.AfterConnect = nil // being let in is enough of an answer
	cfg.ConnectTimeout = min(cfg.ConnectTimeout, limit)
	conn, err := postgres.DialConfig(ctx, s.Name, cfg)
	if err != nil {
		var ce *postgres.ConnectError
		return ctx.Err() == nil && errors.As(err, &ce) && ce.Reach == postgres.ReachTimeout
	}
	(&postgres.Server{Conn: conn}).Close()
	return false
}
