package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

// parse reads a command line as execute does, and performs nothing. Quotes
// keep words together, as in a shell.
func parse(t *testing.T, line string) *app {
	t.Helper()
	a := newApp(strings.NewReader(""), io.Discard, io.Discard)
	parser, err := kong.New(&a.grammar, kong.Name("repmgr"), kong.NoDefaultHelp())
	require.NoError(t, err)
	a.model = parser.Model
	a.line = cli.Arrange(parser.Model, shellWords(line))
	if len(a.line.Faults) == 0 && a.line.Node.Parent != nil {
		_, err = parser.Parse(a.line.Args)
		require.NoError(t, err, "%q", a.line.Args)
	}
	a.command = strings.Join(commandWords(a.line.Node), " ")
	return a
}

func shellWords(line string) []string {
	var words []string
	quoted := false
	for i, part := range strings.FieldsFunc(line, func(r rune) bool {
		if r == '\'' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	}) {
		if i > 0 { // the name of the program
			words = append(words, strings.ReplaceAll(part, "'", ""))
		}
	}
	return words
}

// Every command line that the manual prints, and every one that the programs
// around repmgr 5 are known to use, is understood as it stands.
func TestKnownCommandLines(t *testing.T) {
	t.Parallel()
	cases := []struct {
		line    string
		command string
		check   func(t *testing.T, a *app)
	}{
		// The manual of repmgr 1.
		{"repmgr --version", "", nil},
		{"repmgr --help", "", nil},
		{"./repmgr standby clone 10.68.1.161", "standby clone", func(t *testing.T, a *app) {
			require.Equal(t, "10.68.1.161", a.Standby.Clone.Source)
		}},
		{"./repmgr -D /path/to/new/data/directory standby clone 10.68.1.161", "standby clone", func(t *testing.T, a *app) {
			require.Equal(t, "/path/to/new/data/directory", a.Standby.Clone.DataDir)
			require.Equal(t, "10.68.1.161", a.Standby.Clone.Source)
		}},
		{"./repmgr standby promote", "standby promote", nil},
		{"./repmgr standby follow", "standby follow", nil},
		{"repmgr -D /var/lib/postgresql/9.0 standby clone node1", "standby clone", nil},
		{"repmgr -f /home/postgres/repmgr.conf standby promote", "standby promote", func(t *testing.T, a *app) {
			require.Equal(t, "/home/postgres/repmgr.conf", a.ConfigFile)
		}},
		{"repmgr -D /var/lib/postgresql/9.0 standby clone node2", "standby clone", nil},
		{"repmgr standby promote", "standby promote", nil},
		{"repmgr -f /home/postgres/repmgr.conf master register", "primary register", nil},
		{"repmgr --config_file=/etc/r.conf --verbose standby register", "standby register", func(t *testing.T, a *app) {
			require.Equal(t, "/etc/r.conf", a.ConfigFile)
			require.True(t, a.Verbose)
		}},
		{"repmgr --data-dir=/d --remote-user=me --dbname=x --host=h --port=1 --username=u standby clone", "standby clone", func(t *testing.T, a *app) {
			c := a.Standby.Clone
			require.Equal(t, "/d me x h u", strings.Join([]string{c.DataDir, c.RemoteUser, c.Dbname, c.Host, c.Username}, " "))
		}},
		{"repmgr -p 5433 -D /d standby clone node1 -p 5434", "standby clone", func(t *testing.T, a *app) {
			require.Equal(t, []int{5433, 5434}, a.Standby.Clone.Port)
		}},
		{"repmgr standby follow node2", "standby follow", func(t *testing.T, a *app) {
			require.Equal(t, "node2", a.Standby.Follow.Target)
		}},

		// fly-apps/postgres-flex.
		{"repmgr primary register -f C -F", "primary register", func(t *testing.T, a *app) {
			require.True(t, a.Primary.Register.Force)
			require.Equal(t, "C", a.ConfigFile)
		}},
		{"repmgr standby register -f C -F", "standby register", nil},
		{"repmgr witness register -f C -h primary -F", "witness register", nil},
		{"repmgr primary unregister -f C --node-id=7", "primary unregister", func(t *testing.T, a *app) {
			require.Equal(t, 7, a.Primary.Unregister.NodeID)
		}},
		{"repmgr standby unregister -f C --node-id=7", "standby unregister", nil},
		{"repmgr witness unregister -f C --node-id=7", "witness unregister", nil},
		{"repmgr -f C node rejoin -h H -p 5433 -U repmgr -d repmgr --force-rewind --no-wait", "node rejoin", func(t *testing.T, a *app) {
			require.Equal(t, optionalPath{Given: true}, a.Node.Rejoin.ForceRewind)
			require.Equal(t, repmgr.RejoinRewind, a.Node.Rejoin.policy())
			require.True(t, a.Node.Rejoin.NoWait)
		}},
		{"repmgr -h H -p 5433 -d repmgr -U repmgr -f C standby clone -c -F", "standby clone", func(t *testing.T, a *app) {
			c := a.Standby.Clone
			require.True(t, c.FastCheckpoint && c.Force)
			require.Equal(t, "H repmgr repmgr", strings.Join([]string{c.Host, c.Dbname, c.Username}, " "))
			require.Equal(t, []int{5433}, c.Port)
		}},
		{"repmgr --replication-conf-only -h own -p 5433 -d repmgr -U repmgr -f C standby clone -F", "standby clone", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Clone.ReplicationConfOnly && a.Standby.Clone.Force)
		}},
		{"repmgr standby promote -f C --log-to-file", "standby promote", func(t *testing.T, a *app) {
			require.True(t, a.LogToFile)
		}},
		{"repmgr standby follow -f C --log-to-file --upstream-node-id=3", "standby follow", func(t *testing.T, a *app) {
			require.Equal(t, 3, a.Standby.Follow.UpstreamNodeID)
		}},
		{"repmgr node check", "node check", nil},
		{"repmgr daemon status", "daemon status", nil},
		{"repmgr standby promote --siblings-follow", "standby promote", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Promote.SiblingsFollow)
		}},
		{"repmgr standby promote --siblings-follow --dry-run", "standby promote", nil},
		{"repmgr standby unregister --node-id 7", "standby unregister", func(t *testing.T, a *app) {
			require.Equal(t, 7, a.Standby.Unregister.NodeID)
		}},

		// Bitnami's postgresql-repmgr.
		{"repmgr -f C -h H -p 5432 -U u -d db -D dir standby clone --fast-checkpoint --force", "standby clone", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Clone.FastCheckpoint && a.Standby.Clone.Force)
			require.Equal(t, "dir", a.Standby.Clone.DataDir)
		}},
		{"repmgr -f C master register --force", "primary register", nil},
		{"repmgr standby unregister -f C --node-id=1001", "standby unregister", nil},
		{"repmgr standby register -f C --force --verbose", "standby register", nil},
		{"repmgr -f C witness register -h H --force --verbose", "witness register", nil},
		{"repmgr -f C witness unregister -h H --verbose", "witness unregister", nil},
		{"repmgr standby follow -f C -W", "standby follow", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Follow.NoWait)
		}},
		{"repmgr standby promote -f C --log-level DEBUG --verbose", "standby promote", func(t *testing.T, a *app) {
			require.Equal(t, "DEBUG", a.LogLevel)
		}},
		{"repmgr standby follow -f C -W --log-level DEBUG --verbose", "standby follow", nil},

		// Roles, packages and people.
		{"repmgr cluster show", "cluster show", nil},
		{"repmgr cluster show --csv", "cluster show", nil},
		{"repmgr cluster show --svg", "cluster show", nil},
		{"repmgr cluster watch --interval=5", "cluster watch", nil},
		{"repmgr cluster show --compact --terse", "cluster show", nil},
		{"repmgr standby register --force --upstream-node-id 2", "standby register", nil},
		{"repmgr node status", "node status", nil},
		{"repmgr cluster cleanup -k 7", "cluster cleanup", func(t *testing.T, a *app) {
			require.Equal(t, 7, a.Cluster.Cleanup.KeepHistory)
		}},
		{"repmgr node check --nagios --replication-lag", "node check", func(t *testing.T, a *app) {
			require.Equal(t, repmgr.CheckReplicationLag, a.Node.Check.only())
		}},
		{"repmgr -C /etc/old.conf --cluster=test --check-upstream-config cluster show", "cluster show", nil},
		{"repmgr service status --csv", "service status", nil},
		{"repmgr service pause", "service pause", nil},
		{"repmgr daemon start -w", "daemon start", nil},
		{"repmgr daemon stop --wait=5", "daemon stop", func(t *testing.T, a *app) {
			require.Equal(t, 5*time.Second, a.Daemon.Stop.options().Wait)
		}},
		{"repmgr daemon start -W", "daemon start", func(t *testing.T, a *app) {
			require.Negative(t, a.Daemon.Start.options().Wait)
		}},
		{"repmgr service unpause", "service unpause", nil},
		{"repmgr --no-wait -d 'host=new user=repmgr' --force-rewind=/usr/bin/pg_rewind --config-files=a,b node rejoin", "node rejoin", func(t *testing.T, a *app) {
			require.Equal(t, "/usr/bin/pg_rewind", a.Node.Rejoin.ForceRewind.Path)
			require.Equal(t, []string{"a", "b"}, a.Node.Rejoin.ConfigFiles)
		}},
		{"repmgr node rejoin -h H --reclone --config-archive-dir=/tmp", "node rejoin", func(t *testing.T, a *app) {
			require.Equal(t, repmgr.RejoinReclone, a.Node.Rejoin.policy())
		}},
		{"repmgr node rejoin -h H", "node rejoin", func(t *testing.T, a *app) {
			require.Equal(t, repmgr.RejoinIfClean, a.Node.Rejoin.policy())
		}},
		{"repmgr standby clone -d 'host=node1 user=repmgr dbname=repmgr'", "standby clone", nil},
		{"repmgr standby clone -d postgresql://repmgr@node1/repmgr", "standby clone", nil},
		{"repmgr standby clone node1 --copy-external-config-files", "standby clone", nil},
		{"repmgr standby clone node1 --copy-external-config-files=pgdata -S postgres --without-barman", "standby clone", nil},
		{"repmgr standby clone node1 --recovery-conf-only --pgdata=/d", "standby clone", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Clone.ReplicationConfOnly)
			require.Equal(t, "/d", a.Standby.Clone.DataDir)
		}},

		// The rules of GNU getopt, and words in any case.
		{"repmgr STANDBY Follow -w", "standby follow", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Follow.Wait.Given)
			require.Nil(t, a.Standby.Follow.Wait.N)
		}},
		{"repmgr --wait=5 standby follow", "standby follow", func(t *testing.T, a *app) {
			require.Equal(t, 5, *a.Standby.Follow.Wait.N)
		}},
		{"repmgr standby --wait follow node2", "standby follow", func(t *testing.T, a *app) {
			require.Equal(t, "node2", a.Standby.Follow.Target)
		}},
		{"repmgr standby register --wait-sync", "standby register", func(t *testing.T, a *app) {
			require.True(t, a.Standby.Register.WaitSync.Given)
			require.Equal(t, 30*time.Second, a.Standby.Register.options().WaitStart)
			require.Negative(t, a.Standby.Register.options().WaitSync)
		}},
		{"repmgr standby register --wait-sync=60 --wait-start=0", "standby register", func(t *testing.T, a *app) {
			require.Equal(t, 60, *a.Standby.Register.WaitSync.N)
			require.Negative(t, a.Standby.Register.options().WaitStart, "0 would be the library's default")
			require.Equal(t, time.Minute, a.Standby.Register.options().WaitSync)
		}},
		{"repmgr standby clone -cFhnode1 -D/d --upstream_node=2", "standby clone", func(t *testing.T, a *app) {
			c := a.Standby.Clone
			require.True(t, c.FastCheckpoint && c.Force)
			require.Equal(t, "node1 /d", c.Host+" "+c.DataDir)
		}},
		{"repmgr cluster events --lim 3 -- ", "cluster event", func(t *testing.T, a *app) {
			require.Equal(t, 3, a.Cluster.Event.Limit)
		}},
		{"repmgr primary status", "primary status", nil},
		{"repmgr cluster primary --host", "cluster primary", func(t *testing.T, a *app) { require.True(t, a.Cluster.Primary.Host) }},
		{"repmgr -h node1 cluster show", "cluster show", func(t *testing.T, a *app) { require.Equal(t, "node1", a.Cluster.Show.Host) }},
		{"repmgr cluster crosscheck --csv", "cluster matrix", nil},
		{"repmgr -f /etc/repmgr.conf node service --action=stop --checkpoint", "node service", nil},
	}
	for _, c := range cases {
		t.Run(c.line, func(t *testing.T) {
			t.Parallel()
			a := parse(t, c.line)
			require.Empty(t, a.line.Faults)
			require.Equal(t, c.command, a.command)
			if c.check != nil {
				c.check(t, a)
			}
		})
	}
}

// No command line may make the parser panic, or let kong find what Arrange did not.
func FuzzArrange(f *testing.F) {
	f.Add("repmgr -h H -p 5433 -d repmgr -U repmgr -f C standby clone -c -F")
	f.Add("repmgr --wait= standby follow -- x")
	f.Add("repmgr -  cluster event --limit= --node-id=-1 -p")
	f.Fuzz(func(t *testing.T, line string) { parse(t, line) })
}
