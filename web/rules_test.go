package web

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
)

const (
	rulesFile     = "../contrib/prometheus/repmgr.rules.yml"
	rulesTestFile = "../contrib/prometheus/repmgr.rules.test.yml"
	boardFile     = "../contrib/grafana/repmgr.json"
)

func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	program, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed: scripts/deps installs it")
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// These tests are not parallel: promtool needs the whole machine for some seconds, and the views of other tests grow old.
func TestRules(t *testing.T) {
	promtool(t, "", "check", "rules", rulesFile)
	promtool(t, "", "test", "rules", rulesTestFile)
	for id := registry.NodeID(1); id <= 2; id++ {
		promtool(t, scrape(t, newHandler(nil, Options{Events: &Events{}}), ready(t, id)), "check", "metrics")
	}
}

// What rules, dashboard and manual call by name is there, and the manual has all of it.
func TestNamesOfMetrics(t *testing.T) {
	t.Parallel()
	blocked := ready(t, 1)
	blocked.Peers[1].Answer = election.Silent
	var events Events
	require.NoError(t, events.Notify(t.Context(), repmgr.Event{Type: repmgr.EventFailoverPromote, Success: true, At: time.Now()}))
	routers := func() []health.Router { return []health.Router{{Kind: "vip", Told: time.Now()}} }
	text := scrape(t, newHandler(nil, Options{Events: &events, Routers: routers}), ready(t, 1)) + scrape(t, newHandler(nil, Options{}), blocked) + scrape(t, newHandler(nil, Options{}), ready(t, 2))
	series, families := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, _, _ = strings.Cut(name, " ")
			families[name] = true
			continue
		}
		name, _, _ := strings.Cut(line, "{")
		series[name] = true
	}
	name := regexp.MustCompile(`\brepmgr_[a-z0-9_]+`)
	for _, path := range []string{rulesFile, boardFile} {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		used := name.FindAllString(string(text), -1)
		assert.NotEmpty(t, used)
		for _, n := range used {
			assert.True(t, series[n], "%s: there is no metric %s", path, n)
		}
	}
	manual, err := os.ReadFile("../docs/http.md")
	require.NoError(t, err)
	for n := range families {
		assert.True(t, strings.Contains(string(manual), "`"+n+"`"), "docs/http.md does not have %s", n)
	}
	for _, n := range regexp.MustCompile("`repmgr_[a-z0-9_]+`").FindAllString(string(manual), -1) {
		assert.True(t, families[strings.Trim(n, "`")], "docs/http.md: there is no metric %s", n)
	}
}

func TestGrafanaDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(boardFile)
	require.NoError(t, err)
	var d struct {
		UID, Title    string
		SchemaVersion int
		Templating    struct{ List []struct{ Name, Type string } }
		Panels        []struct {
			ID         int
			Title      string
			Type       string
			Datasource struct{ UID string }
			GridPos    struct{ X, Y, W, H int }
			Targets    []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &d))
	require.Len(t, d.Templating.List, 2)
	assert.Equal(t, []string{"datasource", "cluster"}, []string{d.Templating.List[0].Name, d.Templating.List[1].Name})
	ids, rules := map[int]bool{}, "groups:\n  - name: board\n    rules:\n"
	for _, p := range d.Panels {
		assert.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		assert.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		if p.Type == "row" {
			continue
		}
		assert.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
		assert.NotEmpty(t, p.Targets, p.Title)
		for i, q := range p.Targets {
			assert.Contains(t, q.Expr, `cluster="$cluster"`, p.Title)
			rules += fmt.Sprintf("      - {record: panel_%d_%d, expr: %q}\n", p.ID, i, strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h").Replace(q.Expr))
		}
	}
	path := filepath.Join(t.TempDir(), "board.yml")
	require.NoError(t, os.WriteFile(path, []byte(rules), 0o600))
	promtool(t, "", "check", "rules", path)
}

// fleet is a cluster of three nodes as their daemons see it.
type fleet struct {
	views  []health.View
	events []*Events
	failed string       // why the first HAProxy of each daemon did not take what it was told; empty: it did
	gone   map[int]bool // Prometheus does not reach this daemon
}

// each changes the views of all nodes.
func (f *fleet) each(change func(v *health.View)) {
	for i := range f.views {
		change(&f.views[i])
	}
}

func (f *fleet) tell(t *testing.T, node int, e repmgr.Event) {
	e.At = time.Now()
	require.NoError(t, f.events[node-1].Notify(t.Context(), e))
}

// loses makes all nodes see that a node is down.
func (f *fleet) loses(node int) {
	f.each(func(v *health.View) { v.Peers[node-1].Answer = election.Refused })
}

// faults are what each alert has to find. What needs a course of many values, or many hours, is in rulesTestFile only.
var faults = map[string]func(*testing.T, *fleet){
	"RepmgrNoPrimary":          func(_ *testing.T, f *fleet) { f.gone[0] = true; f.loses(1) },
	"RepmgrPrimaryUnconfirmed": func(_ *testing.T, f *fleet) { f.gone[0] = true },
	"RepmgrTwoPrimaries": func(_ *testing.T, f *fleet) {
		f.views[2].Peers[1].Running = election.Primary
	},
	"RepmgrFailoverNotPossible": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) { v.Peers[1].Priority, v.Peers[2].Priority = 0, 0 })
	},
	"RepmgrPrimaryNotStopped": func(_ *testing.T, f *fleet) { f.views[0].Lease.Left = -time.Second },
	"RepmgrCanNotFence":       func(_ *testing.T, f *fleet) { f.views[1].Peers[1].CanFence = false },
	"RepmgrFenced":            func(_ *testing.T, f *fleet) { f.views[0].Phase = election.Fenced },
	"RepmgrAtRiskHigh": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) {
			v.Rule.Quorum = false
			v.Peers[0].Position.LSN += 100 << 20
			for i := range v.Peers {
				v.Peers[i].Rule.Quorum = false
			}
		})
	},
	"RepmgrStandbyLagging": func(_ *testing.T, f *fleet) { // it has replayed nothing for two minutes
		f.views[0].Local.CurrentLSN += 1000
		f.views[0].LocalSeenAt = f.views[0].LocalSeenAt.Add(2 * time.Minute)
	},
	"RepmgrStandbyNotStreaming": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) { v.Peers[2].Receiving = false })
	},
	"RepmgrStandbyWALGone": func(_ *testing.T, f *fleet) { f.views[1].WALGone = true },
	"RepmgrSlotLost":       func(_ *testing.T, f *fleet) { f.views[0].Local.Slots = []registry.Slot{{Name: "a", WALStatus: "lost"}} },
	"RepmgrPausedForLong": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) { v.Peers[0].Paused, v.Peers[0].PauseSeq = true, 1 })
	},
	"RepmgrServerDown":        func(_ *testing.T, f *fleet) { f.loses(2) },
	"RepmgrVoterNotReachable": func(_ *testing.T, f *fleet) { f.views[0].Peers[2].Answer = election.Silent },
	"RepmgrDaemonSilent":      func(_ *testing.T, f *fleet) { f.views[1].LookedAt = f.views[1].At.Add(-2 * time.Minute) },
	"RepmgrDaemonMissing":     func(_ *testing.T, f *fleet) { f.gone[2] = true },
	"RepmgrNotScraped":        func(_ *testing.T, f *fleet) { f.gone = map[int]bool{0: true, 1: true, 2: true} },
	"RepmgrFailover": func(t *testing.T, f *fleet) {
		f.tell(t, 2, repmgr.Event{Type: repmgr.EventFailoverPromote, Success: true})
	},
	"RepmgrVoteLost":       func(t *testing.T, f *fleet) { f.tell(t, 3, repmgr.Event{Type: repmgr.EventVoteLost}) },
	"RepmgrDuplicateNode":  func(t *testing.T, f *fleet) { f.tell(t, 1, repmgr.Event{Type: repmgr.EventDuplicateNode}) },
	"RepmgrSyncUnproven":   func(t *testing.T, f *fleet) { f.tell(t, 1, repmgr.Event{Type: repmgr.EventSyncUnproven}) },
	"RepmgrRestartPending": func(_ *testing.T, f *fleet) { f.views[1].Local.PendingRestart = 2 },
	"RepmgrArchiveFailing": func(_ *testing.T, f *fleet) {
		f.views[0].Local.Archiver = &registry.Archiver{Failed: 3, FailedAt: &f.views[0].At}
	},
	"RepmgrRouterFailing": func(_ *testing.T, f *fleet) { f.failed = "no answer" },
	"RepmgrForeignDaemon": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) { v.Peers[2].Foreign = true })
	},
}

// healthy are the kinds of clusters in which no alert may fire.
var healthy = map[string]func(*testing.T, *fleet){
	"three nodes": func(*testing.T, *fleet) {},
	"and an observer": func(t *testing.T, f *fleet) {
		t.Helper()
		v := ready(t, 0)
		v.Node, v.Local, v.LocalSeenAt, v.Upstream = "", registry.NodeStatus{}, time.Time{}, health.Upstream{}
		f.views, f.events = append(f.views, v), append(f.events, &Events{})
	},
	"one of them a witness": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) { v.Records[2].Role, v.Peers[2].Role = registry.RoleWitness, election.Witness })
		f.views[2].Local.InRecovery = false
	},
	"manual": func(_ *testing.T, f *fleet) {
		f.each(func(v *health.View) {
			v.Automatic, v.Peers, v.Lease, v.Local.Receiver = false, nil, health.Lease{}, &registry.WALReceiver{Status: "streaming"}
		})
	},
	"a daemon that yields to another": func(_ *testing.T, f *fleet) {
		v := f.views[0]
		v.Automatic, v.Yields, v.Peers, v.Lease = false, true, nil, health.Lease{}
		f.views, f.events = append(f.views, v), append(f.events, &Events{})
	},
}

// courses are the alerts that need a course of many values, or many hours.
var courses = []string{"RepmgrSlotFillsDisk", "RepmgrTermChangesOften", "RepmgrVersionSkew"}

// Each alert fires at the fault that it names, by what /metrics writes for it, and none fires without a fault.
func TestAlertsFireAtFaults(t *testing.T) {
	text, err := os.ReadFile(rulesFile)
	require.NoError(t, err)
	var alerts []string
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(string(text), -1) {
		alerts = append(alerts, m[1])
	}
	assert.ElementsMatch(t, alerts, append(slices.Collect(maps.Keys(faults)), courses...))

	path, err := filepath.Abs(rulesFile)
	require.NoError(t, err)
	var b strings.Builder
	fmt.Fprintf(&b, "rule_files: [%q]\nevaluation_interval: 1m\ntests:\n", path)
	for _, kind := range slices.Sorted(maps.Keys(healthy)) {
		faultTest(t, &b, "", healthy[kind], func(*testing.T, *fleet) {})
	}
	for _, alert := range slices.Sorted(maps.Keys(faults)) {
		faultTest(t, &b, alert, healthy["three nodes"], faults[alert])
	}
	test := filepath.Join(t.TempDir(), "faults.yml")
	require.NoError(t, os.WriteFile(test, []byte(b.String()), 0o600))
	promtool(t, "", "test", "rules", test)
}

const (
	step                = 15 // seconds between two scrapes
	timesWell, timesIll = 20, 320
)

// faultTest writes a test for promtool: five minutes without a fault, and eighty minutes with it. alert must fire then; empty: none may.
func faultTest(t *testing.T, b *strings.Builder, alert string, kind, fault func(*testing.T, *fleet)) {
	t.Helper()
	f := &fleet{gone: map[int]bool{}}
	for id := registry.NodeID(1); id <= 3; id++ {
		f.views, f.events = append(f.views, ready(t, id)), append(f.events, &Events{})
	}
	kind(t, f)
	var handlers []*handler
	for _, events := range f.events {
		routers := func() []health.Router {
			return []health.Router{{Kind: "haproxy", Destination: "/a", Told: f.views[0].At, Failed: f.failed}, {Kind: "vip", Destination: "192.0.2.10/24"}}
		}
		handlers = append(handlers, newHandler(nil, Options{Events: events, Routers: routers}))
	}
	look := func() map[string]string {
		all := map[string]string{}
		for i, v := range f.views {
			if !f.gone[i] {
				for series, value := range parsed(t, scrape(t, handlers[i], v)) {
					all[strings.Replace(series, "{", fmt.Sprintf(`{instance="%d",`, i), 1)] = value
				}
			}
		}
		return all
	}
	well := look()
	fault(t, f)
	ill := look()
	fmt.Fprintf(b, "  - name: %q\n    interval: %ds\n    input_series:\n", alert, step)
	zero := f.views[0].At
	for _, series := range slices.Sorted(maps.Keys(union(well, ill))) {
		fmt.Fprintf(b, "      - {series: '%s', values: '%s %s'}\n", series, course(series, well[series], zero, 0, timesWell), course(series, ill[series], zero, timesWell+1, timesIll))
	}
	fmt.Fprintf(b, "    promql_expr_test:\n      - {expr: 'count by (alertname) (ALERTS{alertstate=\"firing\"})', eval_time: 5m, exp_samples: []}\n")
	if alert == "" {
		fmt.Fprintf(b, "      - {expr: 'count by (alertname) (ALERTS)', eval_time: 80m, exp_samples: []}\n")
		return
	}
	fmt.Fprintf(b, "      - {expr: 'count by (alertname) (max_over_time(ALERTS{alertname=%q,alertstate=\"firing\"}[80m])) > bool 0', eval_time: 80m, exp_samples: [{labels: '{alertname=%q}', value: 1}]}\n", alert, alert)
}

func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// course is a value that stays as it is, in promtool's notation. A time goes on with the clock, which begins at 0.
func course(series, value string, zero time.Time, from, count int) string {
	name, _, _ := strings.Cut(series, "{")
	seconds, err := strconv.ParseFloat(value, 64)
	switch {
	case value == "" && from == 0:
		return fmt.Sprintf("_x%d", count+1) // a value comes once more than it is repeated
	case value == "":
		return "stale"
	case err == nil && strings.HasSuffix(name, "_timestamp_seconds"):
		return fmt.Sprintf("%.3f+%dx%d", seconds-float64(zero.UnixMilli())/1000+float64(from*step), step, count)
	}
	return fmt.Sprintf("%sx%d", value, count)
}
