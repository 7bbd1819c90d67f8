package voters

import (
	"context"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// session is a connection of a watcher, and what it knows of it.
type session struct {
	*registry.Server
	looked    bool   // whether it was looked at for an election
	unsettled bool   // its session is not settled yet: see [postgres.LookFirst]
	glances   bool   // the question of a glance is prepared
	free      int    // connections that the server could still take, as the newest look over it showed
	known     glance // what was there just before that look
}

// Loan is a connection to a server that its borrower ends with giveBack: that of a
// watcher, or one that the borrower has opened.
type Loan struct {
	*registry.Server
	of *Voter // nil: the borrower has opened it
	s  *session
}

// Own is the loan of a connection that the borrower has opened itself.
func Own(n *registry.Server, err error) (*Loan, error) {
	if err != nil {
		return nil, err
	}
	return &Loan{Server: n}, nil
}

// GiveBack ends the loan of a connection, which may have broken meanwhile.
func (l *Loan) GiveBack() {
	if l.of == nil {
		l.Close()
		return
	}
	l.of.giveBack(l.s, l.Broke)
}

// RunAndLook runs f on an open connection, and makes one where there is none. It looks
// afterwards.
func (n *Voter) RunAndLook(ctx context.Context, f func(*registry.Server) error) error {
	err := n.withConnection(ctx, false, f)
	_ = n.enqueue(ctx, job{ctx: ctx, done: make(chan error, 1), at: time.Now()}) // nobody waits for that look
	return err
}

// Run is RunAndLook without the look, for what may wait for a moment.
func (n *Voter) Run(ctx context.Context, f func(*registry.Server) error) error {
	return n.withConnection(ctx, true, f)
}

// RunNow is RunAndLook without the look, for an election: it reads by itself what it has to
// know, and a look would take from it what the server can do.
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

// Borrow hands out an open connection, and makes one where none is free soon.
// Whoever gets one gives it back.
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
	r := <-j.lend // it ends with either context
	return r.node, r.err
}

// giveBack ends a loan. err is what the server may have said over it.
func (n *Voter) giveBack(node *session, err error) {
	n.results <- attempt{node: node, lent: true, err: err}
}
