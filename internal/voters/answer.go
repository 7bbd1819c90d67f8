package voters

import (
	"crypto/tls"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/nowait"
	"github.com/pgrepmgr/repmgr/postgres"
)

// WithoutTLS reports whether an open connection to the server is one without TLS.
func (n *Voter) WithoutTLS() bool {
	if n == nil {
		return false
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	for node := range n.conns {
		if _, ok := node.Conn.PgConn().Conn().(*tls.Conn); !ok {
			return true
		}
	}
	return false
}

// faultSeen is what was wrong with the server's configuration at the last check, over whichever
// connection that was made.
func (n *Voter) faultSeen() (at time.Time, fault string) {
	if n == nil {
		return at, ""
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return n.faultAt, n.fault
}

func (n *Voter) setFault(at time.Time, fault string) {
	if n != nil {
		n.Mu.Lock()
		defer n.Mu.Unlock()
		if at.After(n.faultAt) {
			n.faultAt, n.fault = at, fault
		}
	}
}

// noteEnded notes that the other side has ended a connection. Where no connection is left, and
// the server's kernel or its last message has closed one of them, the server has ended. One
// closed session alone proves nothing: it may have been terminated, or idle for too long.
func (n *Voter) noteEnded(node *session, err error) {
	node.Close()
	n.Mu.Lock()
	delete(n.conns, node.Server)
	if endsServer(err) || errors.Is(err, pgconn.ErrConnClosed) && nowait.Ended(node.Conn.PgConn().Conn()) { // the driver does not always say how the connection was closed
		n.shutdownSaidAt = time.Now()
	}
	over := !n.shutdownSaidAt.IsZero() && len(n.conns) == 0
	if over {
		n.endedAt, n.View.Ended = time.Now(), true
	}
	n.Mu.Unlock()
	if over {
		n.w.wake()
	}
}

// endsServer reports whether an error is one that the end of a server causes. A connection
// reset can have other causes; idle_session_timeout (57P05) and a dropped database (57P04) end
// only a session.
func endsServer(err error) bool {
	state := postgres.SQLState(err)
	return state == "57P01" || state == "57P02" || state == "" && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF))
}

// AnswerOf is what an attempt to reach a server shows about it. nil: it answers.
func AnswerOf(err error) election.Answer {
	var ce *postgres.ConnectError
	if !errors.As(err, &ce) {
		return election.Answers // it answered, though not with its state
	}
	switch ce.Reach {
	case postgres.ReachRefused:
		return election.Refused
	case postgres.ReachStarting:
		return election.NotAccepting
	case postgres.ReachFull:
		return election.NoSlots
	case postgres.ReachRejected:
		return election.Rejects
	case postgres.ReachTimeout:
		if ce.Doing == "" && postgres.Accepted(ce) {
			return election.Hangs
		}
		return election.Silent
	case postgres.ReachOK, postgres.ReachNoRoute, postgres.ReachNoHost, postgres.ReachNotPostgres, postgres.ReachBroken:
		return election.Silent
	}
	return election.Silent
}

// rejection is the server's own reason for rejecting a login.
func rejection(err error) string {
	var ce *postgres.ConnectError
	if !errors.As(err, &ce) {
		return ""
	}
	return postgres.Cause(ce.Err)
}

// noteAnswer stores the outcome of an attempt that gave no view.
func (n *Voter) noteAnswer(a election.Answer, at time.Time, err error) {
	n.Mu.Lock()
	changed := n.View.Answer != a
	switch {
	case a == election.Refused:
		n.View.Starting = time.Time{}
	case a == election.NotAccepting && n.View.Starting.IsZero():
		n.View.Starting = time.Now()
	}
	if a != election.Refused && a != election.NotAccepting { // when a server ends, its port refuses connections
		n.View.Ended, n.shutdownSaidAt = false, time.Time{}
	}
	n.View.Answer, n.View.Tried, n.View.Rejection = a, at, ""
	if a == election.Rejects {
		n.View.Rejection = rejection(err)
	}
	if changed {
		n.View.Since = time.Now()
	}
	n.Mu.Unlock()
	if changed {
		n.w.wake()
	}
}

func (n *Voter) publishView(r attempt) {
	n.Mu.Lock()
	v, p, at, old := r.view, r.pres, r.at, n.View
	if r.glance != nil {
		v, p = r.glance.update(old), n.Last
	}
	if at.Before(old.SeenAt) { // a later question was answered first
		n.Mu.Unlock()
		return
	}
	v.ID, v.Role, v.Priority, v.Location = old.ID, old.Role, old.Priority, old.Location
	v.Answer, v.Tried, v.SeenAt, v.Since = election.Answers, at, at, old.Since
	if old.Answer != v.Answer {
		v.Since = time.Now()
	}
	v.Starting = time.Time{}
	if at.After(n.shutdownSaidAt) {
		n.shutdownSaidAt = time.Time{}
	}
	v.Ended = old.Ended && v.Started.Equal(old.Started) && n.endedAt.After(at) // the look is older than the end of the server
	if v.NoPledge != "" && v.Term == 0 {                                       // a vote that can not be read at the moment still counts
		v.Term, v.Candidate, v.WonElection, v.Paused, v.PauseSeq = old.Term, old.Candidate, old.WonElection, old.Paused, old.PauseSeq
	}
	n.View, n.Last = v, p
	n.Mu.Unlock()
	if old.Answer != v.Answer || old.Running != v.Running || old.Term != v.Term || old.Rule.Compare(v.Rule) != 0 || old.Streams != v.Streams || old.Detached != v.Detached || old.Archive != v.Archive || old.WonElection != v.WonElection || old.Paused != v.Paused || old.PauseSeq != v.PauseSeq || old.Handover != v.Handover || old.Restart != v.Restart || old.NoPledge != v.NoPledge {
		n.w.wake()
	}
}
