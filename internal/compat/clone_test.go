package compat

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// The readiness probe of Bitnami's chart takes a container for busy while the list of processes
// shows a clone, typed as the image types it.
func TestReadinessProbe(t *testing.T) {
	t.Parallel()
	source := daemontest.NewHost(t, 1, pgtest.Start(t, pgtest.Options{Name: "node1"}))
	source.Must(t, "repmgr -f $C primary register -F")
	target := daemontest.NewHost(t, 2, &pgtest.Server{Name: "node2", Dir: filepath.Join(t.TempDir(), "data"), Port: pgtest.Port(t), BinDir: source.BinDir})
	probe := func() bool { // the brackets keep grep from finding itself; other tests may clone, too
		out, _ := source.Sh(t, `ps waux | grep "[d]ata standby clone"`)
		return strings.Contains(out, " repmgr -f "+target.Conf()+" ") && strings.Contains(out, " -D "+target.Dir+" standby clone --fast-checkpoint --force\n")
	}
	require.False(t, probe(), "nothing runs yet")

	// A copy begins with a checkpoint of its source: until somebody makes one, the clone runs.
	checkpointer := pgtest.Query[int](t, source.Server, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`)
	t.Cleanup(source.Thaw)
	require.NoError(t, syscall.Kill(checkpointer, syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Timeout(2*time.Minute))
	defer cancel()
	clone := exec.CommandContext(ctx, filepath.Join(os.Getenv(daemontest.BinEnv), "repmgr"), "-f", target.Conf(), "-h", "127.0.0.1", "-p", fmt.Sprint(source.Port), "-U", "postgres",
		"-d", fmt.Sprintf("dbname=postgres host=127.0.0.1 port=%d connect_timeout=5", source.Port), "-D", target.Dir, "standby", "clone", "--fast-checkpoint", "--force")
	clone.Args[0] = "repmgr"
	var out bytes.Buffer
	clone.Stdout, clone.Stderr = &out, &out
	require.NoError(t, clone.Start())
	t.Cleanup(func() { _ = clone.Process.Kill(); _ = clone.Wait() }) // where it has not ended below
	pgtest.WaitFor(t, "the clone to wait for a checkpoint", func(context.Context) error {
		if got := source.QueryString(t, `SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'waiting for checkpoint to finish'`); got != "1" {
			return fmt.Errorf("%s copies wait", got)
		}
		return nil
	})
	require.True(t, probe(), "the probe does not find the clone")

	source.Thaw()
	require.NoError(t, clone.Wait(), "%s", &out)
	require.FileExists(t, filepath.Join(target.Dir, "standby.signal"), "%s", &out)
	require.False(t, probe(), "it has ended")
}
