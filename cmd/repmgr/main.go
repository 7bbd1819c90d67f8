// Command repmgr performs one task on a PostgreSQL replication cluster and
// exits: register, clone, promote, follow, show. The tasks are the library's;
// this program reads the command line and prints.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/cli"
)

func main() { os.Exit(start()) }

func start() int {
	cli.KeepInherited() // and not close: -f may name one
	ctx, stop := cli.SignalContext(context.Background(), syscall.SIGHUP)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// run performs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := newApp(stdin, stdout, stderr)
	defer a.close()
	return a.finish(a.execute(ctx, args))
}

// exitError is an error with the exit code that scripts expect of it. Without
// an err everything has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return "exit"
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// errIssues ends a command that answered in full, and had trouble to report.
var errIssues = &exitError{code: cli.ExitIssues}

// usageError is all that is wrong with a command line.
type usageError struct {
	faults []string
	hint   string
}

func (e *usageError) Error() string {
	errs := make([]error, len(e.faults))
	for i, f := range e.faults {
		errs[i] = errors.New(f)
	}
	return errors.Join(errs...).Error()
}
