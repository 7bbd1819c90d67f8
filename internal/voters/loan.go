package voters

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// session is one connection of a Voter, with what is known of it.
type session struct {
	*registry.Server
	looked    bool   // a full look was made over it
	unsettled bool   // its first query is still to come: see [postgres.LookFirst]
	glances   bool   // the statement of a glance is prepared
	free      int    // the connections that the server could still accept at the newest look over it
	known     glance // the glance that was taken just before that look
}

// Loan is a connection to a server that its borrower ends with GiveBack. It belongs to a Voter,
// or the borrower has opened it.
type Loan struct {
	*registry.Server
	of *Voter // nil: the borrower has opened the connection itself
	s  *session
}

// Own makes a Loan of a connection that the borrower has opened itself.
func Own(n *registry.Server, err error) (*Loan, error) {
	if err != nil {
		return nil, err
	}
	return &Loan{Server: n}, nil
}

// GiveBack ends the loan. The connection may have broken meanwhile.
func (l *Loan) GiveBack() {
	if l.of == nil {
		l.Close()
		return
	}
	l.of.giveBack(l.s, l.Broke)
}

// RunAndLook runs f over an open connection, or over a new one where none is open, and probes
// the node again afterwards.
func (n *Voter) RunAndLook(ctx context.Context, f func(*registry.Server) error) error {
	err := n.withConnection(ctx, false, f)
	_ = n.enqueue(ctx, job{ctx: ctx, done: make(chan error, 1), at: time.Now()}) // this call does not wait for that look
	return err
}

// Run is RunAndLook without the look, for work that can wait for a moment.
func (n *Voter) Run(ctx context.Context, f func(*registry.Server) error) error {
	return n.withConnection(ctx, true, f)
}

// RunNow is RunAndLook without the look, for an election. The election reads what it needs
// itself, and a look would only cost the server time.
func (n *Voter) RunNow(ctx context.Context, f func(*registry.Server) error) error {
	return n.withConnection(ctx, false, f)
}

func (n *Voter) withConnection(ctx context.Context, easy bool, f func(*registry.Server) error) error {
	node, err := n.takeConnection(ctx, easy)
	if err != nil {
		return err
	}
	if err = f(node.Server); ctx.Err() == nil {
		n.giveBack(node, err)
	} else {
		n.giveBack(node, nil)
	}
	return err
}

// Borrow lends an open connection, or a new one where none becomes free soon. The caller must
// give it back.
func (n *Voter) Borrow(ctx context.Context) (*Loan, error) {
	s, err := n.takeConnection(ctx, false)
	if err != nil {
		return nil, err
	}
	return &Loan{s.Server, n, s}, nil
}

func (n *Voter) takeConnection(ctx context.Context, easy bool) (*session, error) {
	j := job{ctx: ctx, lend: make(chan attempt, 1), at: time.Now(), canWait: easy}
	if err := n.enqueue(ctx, j); err != nil {
		return nil, err
	}
	r := <-j.lend // an answer comes also when one of the contexts ends
	return r.node, r.err
}

// giveBack ends a loan. err is an error that the server may have sent over it.
func (n *Voter) giveBack(node *session, err error) {
	n.results <- attempt{node: node, lent: true, err: err}
}
