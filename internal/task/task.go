package task

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/pgrepmgr/repmgr/election"
)

var errGaveWay = errors.New("the primary is lost: it gives way to an election")

// Task is a long action under way. All methods but Hold are for the goroutine that has
// started it; nil is none, and never runs.
type Task struct {
	Verb election.Verb
	Why  string // the reason of the decision

	cancel context.CancelCauseFunc
	done   chan error // capacity 1: its end waits for the goroutine that has started it

	mu   sync.Mutex
	firm bool // it must not be ended half-way
}

// Start starts a task that does do, which returns when its context ends. firm says how it
// begins: see [Task.Hold]. wake is called when it is over.
func Start(ctx context.Context, verb election.Verb, why string, firm bool, do func(context.Context, *Task) error, wake func()) *Task {
	ctx, cancel := context.WithCancelCause(ctx)
	t := &Task{Verb: verb, Why: why, cancel: cancel, done: make(chan error, 1), firm: firm}
	go func() { // Outcome or End waits for it
		t.done <- do(ctx, t)
		wake()
	}()
	return t
}

// Hold says whether the task is at something that must not be ended half-way. It is an
// error where the task was told to end before that began.
func (t *Task) Hold(ctx context.Context, firm bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.firm = firm
	return context.Cause(ctx)
}

// Interruptible reports whether the task only waits.
func (t *Task) Interruptible() bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.firm
}

// GiveWay tells the task to end, if it only waits.
func (t *Task) GiveWay() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.firm {
		t.cancel(errGaveWay)
	}
}

// Is reports whether the task is one of these, and is not over.
func (t *Task) Is(verbs ...election.Verb) bool {
	return t != nil && slices.Contains(verbs, t.Verb) && len(t.done) == 0
}

// Outcome is what came of the task; over is false as long as it runs.
func (t *Task) Outcome() (over bool, err error) {
	if t == nil {
		return false, nil
	}
	select {
	case err = <-t.done:
		t.cancel(nil)
		return true, err
	default:
		return false, nil
	}
}

// End ends the task, and returns what came of it.
func (t *Task) End() error {
	t.cancel(nil)
	return <-t.done
}
