// Package failure makes the errors of all packages. Each error has a kind, which [errors.Is]
// finds, and may have a hint that says what to do. Package repmgr exports and explains the kinds.
package failure

import (
	"errors"
	"fmt"
)

// The kinds of errors. Package repmgr says what each means.
var (
	ErrConfig           = errors.New("invalid configuration")
	ErrConnect          = errors.New("no connection")
	ErrNoPrimary        = errors.New("no primary found")
	ErrPrimaryExists    = errors.New("another primary exists")
	ErrNotPrimary       = errors.New("not a primary")
	ErrNotStandby       = errors.New("not a standby")
	ErrNotRegistered    = errors.New("not registered")
	ErrRegistered       = errors.New("already registered")
	ErrRefused          = errors.New("refused")
	ErrSchemaVersion    = errors.New("metadata schema is newer than this program")
	ErrSystemIdentifier = errors.New("system identifiers differ")
	ErrTimelineDiverged = errors.New("timelines diverged")
	ErrWALGone          = errors.New("WAL is gone")
	ErrNotAttached      = errors.New("standby is not streaming")
	ErrPromotion        = errors.New("promotion did not complete")
	ErrMetadata         = errors.New("metadata not updated")
	ErrQuery            = errors.New("query failed")
	ErrDirectory        = errors.New("target directory is not usable")
	ErrCopy             = errors.New("copy failed")
	ErrNoQuorum         = errors.New("no quorum")
	ErrPaused           = errors.New("failover is paused")
	ErrRejoin           = errors.New("rejoin did not complete")
	ErrTimeout          = errors.New("timed out")
	ErrServerControl    = errors.New("server not started or stopped")
	ErrNotScheduled     = errors.New("nothing is scheduled")
)

// Hint returns what the reader of err could do about it, or "".
func Hint(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// WithHint attaches a hint to an error. The message of the error does not change; only the
// command line prints hints.
func WithHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

// Of makes an error that matches kind in [errors.Is], without the text of kind in its message.
func Of(kind error, format string, args ...any) error {
	return &ofKind{kind, fmt.Errorf(format, args...)}
}

type ofKind struct{ kind, err error }

func (e *ofKind) Error() string        { return e.err.Error() }
func (e *ofKind) Unwrap() error        { return e.err }
func (e *ofKind) Is(target error) bool { return target == e.kind }
