package repmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// A node that was fenced does not follow, through the archive that all share, a
// branch that somebody has promoted by hand. It has its archive back when it has a
// primary again.
func TestFence_KeepsTheArchiveOut(t *testing.T) {
	for _, where := range []string{"postgresql.auto.conf", "postgresql.conf"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			needRejoin(t)
			archive := t.TempDir()
			command := fmt.Sprintf("cp '%s/%%f' '%%p'", archive)
			nodes := startNodes(t, 3, repmgr.SynchronousOff)
			nodes[1].set(t, `archive_mode = 'on'`, `archive_command = `+quoted(fmt.Sprintf("cp '%%p' '%s/%%f'", archive)))
			nodes[1].Stop("fast")
			nodes[1].StartAgain()
			nodes[0].Exec(t, `ALTER SYSTEM SET wal_log_hints = on`)
			if where == "postgresql.conf" {
				nodes[0].appendConf(t, `restore_command = `+quoted(command))
			} else {
				nodes[0].Exec(t, `ALTER SYSTEM SET restore_command = `+quoted(command))
			}
			nodes[0].Stop("fast")
			nodes[0].StartAgain()
			_, stop := nodes[0].monitor(t)
			var stops []func()
			for _, n := range nodes[1:] {
				_, stop := n.monitor(t)
				stops = append(stops, stop)
			}
			waitReady(t, nodes, 3, repmgr.SynchronousOff)
			for _, stop := range stops {
				stop()
			}
			nodes[1].Freeze()
			nodes[2].Freeze()
			nodes[0].events.wait(t, repmgr.EventFence)
			pgtest.WaitFor(t, "the fenced node to be back", func(ctx context.Context) error {
				s, err := repmgr.Connect(ctx, nodes[0].Conninfo())
				if err == nil {
					s.Close()
				}
				return err
			})
			nodes[1].Thaw()
			nodes[2].Thaw()
			stop()

			nodes[1].Exec(t, `SELECT pg_promote()`)
			nodes[1].Exec(t, `CREATE TABLE branch (i int)`)
			segment := nodes[1].QueryString(t, `SELECT pg_walfile_name(pg_switch_wal())`)
			pgtest.WaitFor(t, "the branch to be archived", func(context.Context) error {
				_, err := os.Stat(filepath.Join(archive, segment))
				_, errHistory := os.Stat(filepath.Join(archive, "00000002.history"))
				return errors.Join(err, errHistory)
			})
			nodes[0].Stop("fast") // at its start a standby looks for timelines in the archive
			nodes[0].StartAgain()
			require.Equal(t, "", nodes[0].QueryString(t, `SELECT current_setting('restore_command')`))
			require.Equal(t, "", nodes[0].QueryString(t, `SELECT coalesce(to_regclass('branch')::text, '')`))
			require.NoFileExists(t, filepath.Join(nodes[0].Dir, "pg_wal", "00000002.history"))

			c, err := repmgr.New(nodes[0].cfg)
			require.NoError(t, err)
			res, err := c.Rejoin(t.Context(), repmgr.RejoinOptions{Policy: repmgr.RejoinRewind, Target: nodes[1].Conninfo()})
			require.NoError(t, err)
			t.Log(res)
			waitValue(t, nodes[0], command, `SELECT current_setting('restore_command')`)
			auto, err := os.ReadFile(filepath.Join(nodes[0].Dir, "postgresql.auto.conf"))
			require.NoError(t, err)
			require.NotContains(t, string(auto), "saved_restore_command")
			require.Equal(t, where == "postgresql.auto.conf", strings.Contains(string(auto), "restore_command"))
		})
	}
}

// So does one that is screened.
func TestScreen_KeepsTheArchiveOut(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3, repmgr.SynchronousOff)
	nodes[0].Exec(t, `ALTER SYSTEM SET restore_command = 'false'`)
	for _, n := range nodes {
		n.stop()
		n.Stop("fast")
	}
	res := nodes[0].screen(t, repmgr.ScreenOptions{})
	require.Equal(t, repmgr.RoleStandby, res.As)
	nodes[0].StartAgain()
	require.Equal(t, "", nodes[0].QueryString(t, `SELECT current_setting('restore_command')`))
	require.Equal(t, "=false", nodes[0].QueryString(t, `SELECT current_setting('repmgr.saved_restore_command')`))
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// appendConf adds a line to the server's own file.
func (n *node) appendConf(t *testing.T, line string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.Dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(line + "\n")
	require.NoError(t, errors.Join(err, f.Close()))
}
