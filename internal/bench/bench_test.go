package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Runner{M: reporting{m}}.Run()) }

// reporting prints what the tests have measured after they have run.
type reporting struct{ m *testing.M }

func (r reporting) Run() int {
	before := loadAverage()
	code := r.m.Run()
	if len(results.figures) == 0 {
		return code
	}
	results.Machine = machine()
	results.Load = before + " before, " + loadAverage() + " after"
	slices.SortStableFunc(results.figures, func(a, b *figure) int { return strings.Compare(a.Section, b.Section) })
	results.print(os.Stdout)
	if err := results.save(os.Getenv("REPMGR_BENCH_JSON")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	if code != 0 {
		return code
	}
	if err := results.page(os.Getenv("REPMGR_BENCH_PAGE")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	for _, short := range results.short() {
		fmt.Fprintln(os.Stderr, "bench: SHORT:", short)
		code = 1
	}
	return code
}

// wanted skips a test of a run that does not measure.
func wanted(t *testing.T) {
	t.Helper()
	if os.Getenv("REPMGR_BENCH") != "1" {
		t.Skip("REPMGR_BENCH=1 is not set: make bench measures")
	}
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05"), t.Name())
}

// stat is a series of measurements of one thing, in the figure's unit.
type stat struct {
	Samples []float64
}

func (s stat) known() bool { return len(s.Samples) > 0 }

func (s stat) median() float64 {
	sorted := slices.Sorted(slices.Values(s.Samples))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

func (s stat) String() string {
	if !s.known() {
		return "-"
	}
	if len(s.Samples) == 1 {
		return short(s.Samples[0])
	}
	return fmt.Sprintf("%s [%s-%s]", short(s.median()), short(slices.Min(s.Samples)), short(slices.Max(s.Samples)))
}

// short keeps three figures that count.
func short(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.995:
		return fmt.Sprintf("%.2g", v)
	case v < 99.5:
		return fmt.Sprintf("%.3g", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// limit is what ours may be at most. The zero value is no limit.
type limit struct {
	Value float64 // in the figure's unit; 0: none
	Times float64 // of the peer's median; 0: none
}

func (l limit) String() string {
	switch {
	case l.Value > 0:
		return "<= " + short(l.Value)
	case l.Times > 0:
		return fmt.Sprintf("<= %s x peer", short(l.Times))
	default:
		return ""
	}
}

// figure is one line of the table.
type figure struct {
	Section, What, Unit string
	Peer                string // its name
	Theirs, Ours        stat
	Limit               limit
}

func (f *figure) ratio() string {
	if !f.Theirs.known() || !f.Ours.known() || f.Theirs.median() == 0 {
		return "-"
	}
	if r := f.Ours.median() / f.Theirs.median(); r >= 0.01 {
		return fmt.Sprintf("%.2f", r)
	}
	return "< 0.01"
}

func (f *figure) verdict() string {
	bound := f.Limit.Value
	if f.Limit.Times > 0 && f.Theirs.known() {
		bound = f.Limit.Times * f.Theirs.median()
	}
	switch {
	case bound == 0 || !f.Ours.known():
		return ""
	case f.Ours.median() <= bound:
		return "pass"
	default:
		return "SHORT"
	}
}

// results of the run. Tests that run at once add to it.
var results table

type table struct {
	mu      sync.Mutex
	figures []*figure
	Machine string
	Load    string
}

func (r *table) add(f figure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures = append(r.figures, &f)
}

func (r *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\nload average %s\nmedian [min-max]; ratio is ours / peer, less is better everywhere\n", r.Machine, r.Load)
	section := ""
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range r.figures {
		if f.Section != section {
			section = f.Section
			_ = tw.Flush()
			fmt.Fprintf(w, "\n%s\n", section)
			fmt.Fprintln(tw, "  WHAT\tUNIT\tPEER\tPEER'S\tOURS\tRATIO\tLIMIT\t")
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.What, f.Unit, f.Peer, f.Theirs, f.Ours, f.ratio(), f.Limit, f.verdict())
	}
	_ = tw.Flush()
	fmt.Fprintln(w)
}

// save writes the figures with every sample as JSON.
func (r *table) save(path string) error {
	if path == "" {
		return nil
	}
	type line struct {
		Section string    `json:"section"`
		What    string    `json:"what"`
		Unit    string    `json:"unit"`
		Peer    string    `json:"peer"`
		Theirs  []float64 `json:"peer_samples"`
		Ours    []float64 `json:"our_samples"`
		Ratio   string    `json:"ratio"`
		Limit   string    `json:"limit,omitempty"`
		Verdict string    `json:"verdict,omitempty"`
	}
	out := struct {
		Machine string    `json:"machine"`
		Load    string    `json:"load_average"`
		At      time.Time `json:"at"`
		Figures []line    `json:"figures"`
	}{Machine: r.Machine, Load: r.Load, At: time.Now()}
	for _, f := range r.figures {
		out.Figures = append(out.Figures, line{f.Section, f.What, f.Unit, f.Peer, f.Theirs.Samples, f.Ours.Samples, f.ratio(), f.Limit.String(), f.verdict()})
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

// machine names what the figures were measured on.
func machine() string {
	read := func(path, key string) string {
		b, _ := os.ReadFile(path)
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, key); ok && strings.TrimSpace(k) == "" {
				return strings.Trim(v, "\": \t\n")
			}
		}
		return "?"
	}
	var uts syscall.Utsname
	_ = syscall.Uname(&uts)
	var release strings.Builder
	for _, c := range uts.Release {
		if c != 0 {
			release.WriteByte(byte(c))
		}
	}
	var info syscall.Sysinfo_t
	_ = syscall.Sysinfo(&info)
	return fmt.Sprintf("%d cores (%s), %.0f GB memory, %s, Linux %s\n%s, %s; files on %s under %s", runtime.NumCPU(),
		read("/proc/cpuinfo", "model name"), mebibytes(int64(info.Totalram)*int64(info.Unit))/1024, read("/etc/os-release", "PRETTY_NAME="), release.String(),
		versionOf(filepath.Join(serverBin, "postgres")), runtime.Version(), fileSystem(os.TempDir()), os.TempDir())
}

// fileSystem names the type of the file system of a directory.
func fileSystem(dir string) string {
	var fs syscall.Statfs_t
	_ = syscall.Statfs(dir, &fs)
	names := map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs: not a disk", 0x794c7630: "overlay"}
	if n := names[fs.Type]; n != "" {
		return n
	}
	return fmt.Sprintf("file system %#x", fs.Type)
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(b))[:2], " ")
}
