package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/pgfollow"
)

// Report is what a whole run of the suite has found.
type Report struct {
	Began    time.Time
	Took     time.Duration
	Version  string // of the repmgr under test
	Settings Settings
	Results  []Result
}

func sortStable[T any](s []T, compare func(a, b T) int) { slices.SortStableFunc(s, compare) }

// write leaves report.json, report.md and outages.svg in dir, and prints the short form.
func (r Report) write(dir string, stdout io.Writer) error {
	sortStable(r.Results, func(a, b Result) int { return a.At.Compare(b.At) })
	doc, err := json.MarshalIndent(struct {
		Began   time.Time `json:"began"`
		Seconds float64   `json:"seconds"`
		Version string    `json:"version"`
		Results []Result  `json:"results"`
	}{r.Began, r.Took.Seconds(), r.Version, r.Results}, "", " ")
	if err != nil {
		return err
	}
	text := r.markdown()
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "report.json"), append(doc, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "report.md"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(dir, "outages.svg"), []byte(plot(r.Results)), 0o644))
	fmt.Fprint(stdout, text)
	fmt.Fprintf(stdout, "\nreport: %s (and report.json, outages.svg; logs of findings in findings/)\n", filepath.Join(dir, "report.md"))
	return err
}

func (r Report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	fell, acked, rebuilt, slow := 0, 0, 0, 0
	for _, res := range r.Results {
		acked += res.Acked
		if len(res.Problems) > 0 {
			fell++
		}
		if res.Rebuilt {
			rebuilt++
		} else if res.HealedMS > slowAfter.Milliseconds() {
			slow++
		}
	}
	p("# Fault injection\n\n%s, %s, %d faults in %s, %d rows acknowledged, %d faults fell short, %d clusters had to be made anew; %d were well again only after more than %s.\n\n",
		r.Version, r.Began.UTC().Format("2006-01-02"), len(r.Results), r.Took.Round(time.Second), acked, fell, rebuilt, slow, slowAfter)
	p("Outage: the longest time without an acknowledged commit, of a client that commits every 5 ms and reaches the winner. Lost: acknowledged rows missing afterwards. ")
	p("Wrong side: of those, and of rows sent to a server after another one had been promoted in its place, what was acknowledged after the fault had begun; in brackets how long after it the last of them came. ")
	p("False: a failover where none was due. Followers: from the promotion until all standbys that were not hit streamed. Times in ms, p50/p99/max; in italics where several clusters shared the machine.\n\n")
	p("| repmgr | fault | mode | n | failovers | outage | lost | wrong side | false | followers | healed | fell short |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range summarise(r.Results) {
		fenced := fmt.Sprint(s.Fenced)
		if s.Fenced > 0 {
			fenced += fmt.Sprintf(" (%d)", s.FencedFor)
		}
		times := func(v []float64) string {
			if len(v) == 0 {
				return ""
			}
			t := fmt.Sprintf("%.0f/%.0f/%.0f", quantile(v, 0.5), quantile(v, 0.99), slices.Max(v))
			if !s.Alone {
				t = "_" + t + "_"
			}
			return t
		}
		p("| %s | %s | %s | %d | %d | %s | %d | %s | %d | %s | %s | %d |\n", s.Suite, s.Nemesis, s.Mode, s.N, s.Failovers, times(s.Outages), s.Lost, fenced, s.False, times(s.Follows), times(s.Healed), s.Fell)
	}
	p("\n%s", r.asked())
	p("%s", r.ratios())
	p("%s", r.short())
	return b.String()
}

// asked says what became of the commits without an answer, as a client was told.
func (r Report) asked() string {
	var all answers
	for _, res := range r.Results {
		all.add(res.Asked)
	}
	line := func(m map[pgfollow.Outcome]int) string {
		return fmt.Sprintf("%d committed, %d aborted, %d lost, %d unknown", m[pgfollow.Committed], m[pgfollow.Aborted], m[pgfollow.Lost], m[pgfollow.Unknown])
	}
	text := fmt.Sprintf("Commits without an answer, as pgfollow.OutcomeOf says afterwards: %s. Of acknowledged ones that are not there, and some around the others: %s. The rows contradict %d.\n\n", line(all.Outcomes), line(all.Others), len(all.Wrong))
	for _, k := range slices.Sorted(maps.Keys(all.Why)) {
		text += fmt.Sprintf("- unknown, %d: %s\n", all.Why[k], k)
	}
	return text + "\n"
}

// ratios compares with the peer, where it ran in the same run.
func (r Report) ratios() string {
	var b strings.Builder
	all := summarise(r.Results)
	for _, peer := range all {
		if !strings.HasPrefix(peer.Suite, "repmgr 5") {
			continue
		}
		for _, us := range all {
			if us.Suite == "ours" && us.Nemesis == peer.Nemesis {
				ours, theirs := quantile(us.Outages, 0.5), quantile(peer.Outages, 0.5)
				fmt.Fprintf(&b, "- %s, %s: p50 %.0f ms; %s %.0f ms: %.0f times as long\n", us.Nemesis, us.Mode, ours, peer.Suite, theirs, theirs/max(ours, 1))
			}
		}
	}
	if b.Len() > 0 {
		return "## Beside the peer, in this run\n\n" + b.String() + "\n"
	}
	return ""
}

// short lists every fault that fell short, with what replays it.
func (r Report) short() string {
	var b strings.Builder
	for _, res := range r.Results {
		if len(res.Problems) > 0 {
			fmt.Fprintf(&b, "- seed %d fault %d (%s, %s, %s, hit %s): %s\n", res.Seed, res.N, res.Topology, res.Mode, res.Nemesis, res.Target, strings.Join(res.Problems, "; "))
		}
	}
	if b.Len() == 0 {
		return "Nothing fell short.\n"
	}
	return "## What fell short\n\n" + b.String()
}
