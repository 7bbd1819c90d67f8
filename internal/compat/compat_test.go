package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { daemontest.Main(m) }

// upstream is how a container finds out, before it starts its server, who the primary is: the
// connection strings of the active nodes without an upstream, as each member that answers has them.
const upstream = `SELECT conninfo FROM repmgr.show_nodes WHERE (upstream_node_name IS NULL OR upstream_node_name = '') AND active=true`

// What scripts ask of a healthy cluster, and what they make of the answers.
func TestLines(t *testing.T) {
	t.Parallel()
	nodes := daemontest.Cluster(t, 3)
	primary, standby := nodes[0], nodes[1]
	other := daemontest.NewHost(t, 9, pgtest.Start(t, pgtest.Options{Name: "unregistered"}))
	for name, l := range map[string]struct {
		on   *daemontest.Host
		line string
		want string // all of the output; a text that begins with ^ is a regular expression
		code int
	}{
		"backup job, on the primary":      {primary, `repmgr node check --role 2>/dev/null | grep -q primary`, "", 0},
		"backup job, on a standby":        {standby, `repmgr node check --role 2>/dev/null | grep -q primary`, "", 1},
		"backup job, on no node":          {other, `repmgr node check --role 2>/dev/null | grep -q primary`, "", 1},
		"registered already? yes":         {primary, `repmgr node check --role -f $C >/dev/null 2>&1 && echo yes`, "yes\n", 0},
		"registered already? no":          {other, `repmgr node check --role -f $C >/dev/null 2>&1 || echo no`, "no\n", 0},
		"HCL Digital Experience":          {standby, `repmgr cluster show --compact --terse 2>/dev/null | grep "primary" | awk '{split($0,a,"|"); print a[2]}' | xargs`, "node1\n", 0},
		"French backup suite":             {standby, `repmgr -f $C cluster show 2>/dev/null | awk -F '|' '$3 ~ "primary" {print $2}' | tr -d ' '`, "node1\n", 0},
		"pgnode wrapper, the primary":     {standby, `repmgr -f $C cluster show --csv 2>/dev/null | awk -F, '$3 == 0' | cut -d, -f1`, "1\n", 0},
		"Consul leader script":            {standby, `repmgr node status --csv 2>/dev/null | grep "Node ID" | cut -d, -f 2 | sed 's/"//g'`, "2\n", 0},
		"Proxmox scripts":                 {standby, `repmgr node status --csv 2>/dev/null | grep '"Role"'`, `^"Role",.*standby`, 0},
		"Caco":                            {standby, `repmgr cluster show --compact 2>/dev/null`, `^(?m)^\s+[0-9]{1,}\s+\|\s+node2\s+\|`, 0},
		"InnoGames, cluster show":         {primary, `repmgr cluster show --csv`, `^^\d+,\d+,-?\d+\n\d+,\d+,-?\d+\n\d+,\d+,-?\d+\n$`, 0},
		"InnoGames, service status":       {primary, `repmgr service status --csv | awk -F, 'NF != 10'`, "", 0},
		"InnoGames, its exit code":        {primary, `repmgr service status --csv >/dev/null 2>&1`, "", 0},
		"the database of ManageIQ's view": {primary, fmt.Sprintf(`psql -At '%s' -c "SELECT to_regclass('repmgr.nodes'), type, count(*), bool_and(conninfo ~ 'host=' AND conninfo !~ 'password') FROM repmgr.nodes WHERE active AND type = 'primary' GROUP BY type"`, primary.Conninfo()), "repmgr.nodes|primary|1|t\n", 0},
		"a runbook's switchover, planned": {standby, `repmgr standby switchover -f $C --siblings-follow --dry-run 2>&1 | grep -c "prerequisites for executing STANDBY SWITCHOVER are met"`, "1\n", 0},
		"node check, all":                 {primary, `repmgr -f $C node check | head -1`, "Node \"node1\":\n", 0},
		"matrix":                          {primary, `repmgr -f $C cluster matrix --csv | sort`, "1,1,0\n1,2,0\n1,3,0\n2,1,0\n2,2,0\n2,3,0\n3,1,0\n3,2,0\n3,3,0\n", 0},
		"--cluster without pg_wrapper":    {primary, `repmgr --cluster 15/main cluster show --terse >/dev/null 2>&1`, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, code := l.on.Sh(t, l.line)
			require.Equal(t, l.code, code, out)
			if pattern, ok := strings.CutPrefix(l.want, "^"); ok {
				require.Regexp(t, regexp.MustCompile(pattern), out)
				return
			}
			require.Equal(t, l.want, out)
		})
	}
}

// A row that somebody else changes while repmgrd runs stays as it was changed.
func TestSlotNameByHand(t *testing.T) {
	t.Parallel()
	nodes := daemontest.Cluster(t, 2)
	nodes[0].Exec(t, `UPDATE repmgr.nodes SET slot_name = 'by_hand' WHERE node_id = 2`)
	nodes[1].EndDaemon()
	nodes[1].Watch(t)
	nodes[1].Must(t, "repmgr -f $C service status")
	pgtest.WaitFor(t, "the slot", func(context.Context) error {
		if got := nodes[0].QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'by_hand'`); got != "1" {
			return errors.New(got)
		}
		return nil
	})
	require.Equal(t, "by_hand", nodes[0].QueryString(t, `SELECT slot_name FROM repmgr.nodes WHERE node_id = 2`))
}

// One node is dark: checks say so by their exit codes.
func TestOneNodeDark(t *testing.T) {
	t.Parallel()
	nodes := daemontest.Cluster(t, 3)
	nodes[2].EndDaemon()
	nodes[2].Stop("fast")
	for line, want := range map[string]int{
		"repmgr cluster show --csv":       25,
		"repmgr cluster show --compact":   25,
		"repmgr cluster matrix --csv":     25,
		"repmgr cluster crosscheck --csv": 25,
		"repmgr node check --downstream":  2,
	} {
		pgtest.WaitFor(t, line, func(context.Context) error {
			if out, code := nodes[0].Sh(t, line); code != want {
				return fmt.Errorf("%d: %s", code, out)
			}
			return nil
		})
	}
	out, _ := nodes[0].Sh(t, "repmgr cluster show --csv")
	require.Regexp(t, `(?m)^3,-1,-1$`, out)
}

// A container that boots asks every partner who the primary is, and starts as a primary itself
// where they do not agree on one: they do, at any time. A pre-stop hook stops the primary, and
// waits for another one.
func TestWhoIsThePrimary(t *testing.T) {
	t.Parallel()
	hook := filepath.Join(t.TempDir(), "events")
	nodes := daemontest.Cluster(t, 3, "failover_on_shutdown=yes", "rejoin=rewind", fmt.Sprintf(`event_notification_command='echo "%%n %%e %%s" >> %s'`, hook))
	said := func() (all []string) {
		for _, n := range nodes {
			if out, code := n.Sh(t, fmt.Sprintf(`psql -At '%s connect_timeout=2' -c "%s"`, n.Conninfo(), upstream)); code == 0 {
				all = append(all, strings.TrimSpace(out))
			}
		}
		return all
	}
	agree := func(on *daemontest.Host) error {
		for _, conninfo := range said() {
			if !strings.Contains(conninfo, fmt.Sprintf("port=%d ", on.Port)) || strings.Contains(conninfo, "\n") {
				return fmt.Errorf("want port %d, got %q", on.Port, conninfo)
			}
		}
		return nil
	}
	require.NoError(t, agree(nodes[0]))
	nodes[0].EndDaemon()  // the whole container ends
	nodes[0].Stop("fast") // pre-stop
	var winner *daemontest.Host
	pgtest.WaitFor(t, "another primary", func(context.Context) error {
		for _, n := range nodes[1:] {
			if n.QueryString(t, `SELECT pg_is_in_recovery()`) == "f" {
				winner = n
				return agree(n)
			}
		}
		return errors.New("none yet")
	})
	nodes[0].Watch(t) // its daemon brings it back
	pgtest.WaitFor(t, "the former primary", func(context.Context) error {
		if len(said()) < 3 {
			return errors.New("it is down")
		}
		return agree(winner)
	})
	id := map[*daemontest.Host]int{nodes[1]: 2, nodes[2]: 3}[winner]
	pgtest.WaitFor(t, "the hooks", func(context.Context) error {
		text, err := os.ReadFile(hook)
		for _, want := range []string{fmt.Sprintf("%d repmgrd_failover_promote 1", id), "1 node_rejoin 1"} {
			if err == nil && !strings.Contains(string(text), want+"\n") {
				err = fmt.Errorf("no %q in %s", want, text)
			}
		}
		return err
	})
}
