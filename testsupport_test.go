package repmgr_test

import (
	"log/slog"
	"testing"
	"time"
)

const (
	millisecond = time.Millisecond
	waitLimit   = 30 * time.Second
)

// testLogger shows what the library logs, where the test that it belongs to shows its log.
func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
