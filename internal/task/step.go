package task

import (
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// LogStep adds a step that is done to steps, and logs it under the name of the action that began at
// start. A test can make the process die at a step.
func LogStep(log *slog.Logger, action string, steps *[]registry.FailoverStep, start time.Time, step, evidence string, attrs ...any) {
	elapsed := time.Since(start)
	*steps = append(*steps, registry.FailoverStep{Step: step, After: elapsed, Evidence: evidence})
	log.Info(action, slices.Concat([]any{"step", step}, attrs, []any{"elapsed", elapsed.Round(time.Microsecond), "evidence", evidence})...)
	if os.Getenv("REPMGR_TEST_DIE_AT") == step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}
