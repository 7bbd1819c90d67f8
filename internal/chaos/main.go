package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Settings are the command line. Doc.go explains it.
type Settings struct {
	Bin, PgBin, Out string
	Seed            uint64
	Faults, PerRun  int
	Jobs            int
	Budget          time.Duration
	Topology, Mode  string
	Only            string
	Pairs           int
	Outage          int
	PeerRuns        int
	Soak            time.Duration
	Plain, Verbose  bool
	Keep, Each      bool
	Ext4            bool
	Suite           string // inside: ours, peer or tuned
	Sides           bool   // inside
	Alone           bool   // inside
}

func parse(args []string, stderr io.Writer) (s Settings, err error) {
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&s.Bin, "bin", "bin", "`directory` of the repmgr and repmgrd under test")
	f.StringVar(&s.PgBin, "pg-bindir", "", "`directory` of PostgreSQL's programs (default REPMGR_PG_BINDIR, or the newest in /usr/lib/postgresql)")
	f.StringVar(&s.Out, "out", "", "`directory` for the report (default bin/chaos, with outage or soak below it)")
	f.Uint64Var(&s.Seed, "seed", 1, "of the first run; the others follow")
	f.IntVar(&s.Faults, "faults", 1000, "how many faults in all")
	f.IntVar(&s.PerRun, "per-run", 25, "how many faults one cluster meets: a seed is replayed with the same number")
	f.IntVar(&s.Jobs, "jobs", 3, "how many clusters side by side")
	f.DurationVar(&s.Budget, "budget", 0, "begin no new run after this time; 0: no limit")
	f.StringVar(&s.Topology, "topology", "3,3,3,3+witness,3+witness,5,2+witness,2+etcd", "list that a seed chooses from")
	f.StringVar(&s.Mode, "mode", "quorum,off", "list of synchronous modes that a seed chooses from")
	f.StringVar(&s.Only, "only", "", "nemeses, names or beginnings of names and *, joined by semicolons (default: all)")
	f.BoolVar(&s.Each, "each", false, "one run with every nemesis once")
	f.IntVar(&s.Pairs, "pairs", 25, "how many of a hundred faults are two at once")
	f.IntVar(&s.Outage, "outage", 0, "measure outages instead: so many times, beside repmgr 5")
	f.IntVar(&s.PeerRuns, "peer-runs", 3, "of an -outage: how often each fault meets the peer")
	f.DurationVar(&s.Soak, "soak", 0, "instead of faults: so long 200 ms of jitter, 20 % loss and a starved processor, and no failover")
	f.BoolVar(&s.Ext4, "ext4", false, "disks are files with an ext4, which can be frozen: adds the faults of a disk that stalls")
	f.BoolVar(&s.Plain, "plain", false, "no namespaces: faults of processes only")
	f.BoolVar(&s.Keep, "keep", false, "keep the logs of runs that passed, too")
	f.BoolVar(&s.Verbose, "v", false, "say what happens")
	f.StringVar(&s.Suite, "suite", "ours", "ours, peer (repmgr 5) or tuned (repmgr 5, as quick as it gets)")
	f.BoolVar(&s.Sides, "sides", true, "a client on every data node's machine, too")
	f.BoolVar(&s.Alone, "alone", false, "nothing else runs beside this: say so in the results")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if s.Each {
		s.Faults, s.PerRun, s.Jobs = 1, 1, 1
	}
	if s.Out == "" {
		s.Out = "bin/chaos"
		if s.Outage > 0 {
			s.Out += "/outage"
		}
		if s.Soak > 0 {
			s.Out += "/soak"
		}
	}
	if s.PgBin == "" {
		s.PgBin = pgBin()
	}
	return s, nil
}

func pgBin() string {
	if dir := os.Getenv("REPMGR_PG_BINDIR"); dir != "" {
		return dir
	}
	best := ""
	for _, dir := range globs("/usr/lib/postgresql/*/bin") {
		if _, err := os.Stat(dir + "/postgres"); err == nil && (len(dir) > len(best) || len(dir) == len(best) && dir > best) {
			best = dir
		}
	}
	return best
}

// Main runs the suite with a command line and returns the exit code: 0, 1 where
// the product fell short of a promise, 2 where the harness itself had trouble.
func Main(args []string, stdout, stderr io.Writer) int {
	s, err := parse(args, stderr)
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(stderr, "chaos:", err)
		}
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var problems int
	if Stage() == "inside" {
		problems, err = inside(ctx, s, stdout)
	} else {
		problems, err = outside(ctx, s, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 2
	}
	return min(problems, 1)
}

// inside is one run: its results go to out, a JSON object a line.
func inside(ctx context.Context, s Settings, stdout io.Writer) (problems int, err error) {
	o := PlanOptions{Seed: s.Seed, Count: s.PerRun, Topology: s.Topology, Mode: s.Mode, PairsPct: s.Pairs, Each: s.Each, Plain: s.Plain, Peer: s.Suite != "ours", Ext4: s.Ext4}
	if s.Only != "" {
		o.Only = strings.Split(s.Only, ";")
	}
	if s.Plain {
		o.Count = s.Faults
	}
	plan, err := NewPlan(o)
	if err != nil {
		return 0, err
	}
	log := func(format string, args ...any) {
		if s.Verbose {
			fmt.Fprintf(stdout, "%s seed %d: %s\n", time.Now().Format("15:04:05.000"), s.Seed, fmt.Sprintf(format, args...))
		}
	}
	dir := home
	if s.Plain {
		if dir, err = os.MkdirTemp("", "repmgr-chaos-"); err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			return 0, err
		}
	}
	suite, err := s.suite(dir)
	if err != nil {
		return 0, err
	}
	c, err := newCluster(options{
		Suite: suite, BinDir: s.PgBin, Topology: Topology(plan.Topology), Quorum: plan.Mode == "quorum", Dir: dir, Plain: s.Plain, Ext4: s.Ext4, Log: log,
		Screened: !suite.Peer && plan.Seed%2 == 0,
	})
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := os.MkdirAll(s.Out, 0o755); err != nil {
		return 0, err
	}
	out, err := os.OpenFile(filepath.Join(s.Out, fmt.Sprintf("run-%s-%d.jsonl", s.Suite, s.Seed)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	r := &runner{c: c, plan: plan, alone: s.Alone, sides: s.Sides, evict: filepath.Join(s.Out, "findings"), log: log}
	r.emit = func(res Result) {
		line, _ := json.Marshal(res)
		_, _ = out.Write(append(line, '\n'))
		if len(res.Problems) > 0 {
			problems++
		}
		log("%3d %-40s %-16s outage %6.0f ms, promoted %6.0f ms, followers %5.0f ms, lost %d, fenced %d, healed %d ms: %s", res.N, res.Nemesis, res.Target, res.OutageMS, res.PromotedMS, res.FollowMS, res.Lost, res.Fenced, res.HealedMS, strings.Join(append([]string{}, res.Verdict()), "; "))
	}
	if s.Soak > 0 {
		return problems, r.soak(ctx, s.Soak)
	}
	err = r.run(ctx)
	if s.Keep {
		r.keep(fmt.Sprintf("%d-end", s.Seed))
	}
	return problems, err
}

// suite of the run, with our programs where the servers' user can read them.
func (s Settings) suite(dir string) (Suite, error) {
	if s.Suite != "ours" {
		p := Peer(s.PgBin, s.Suite == "tuned")
		return p, p.Missing()
	}
	if err := Ours(s.Bin).Missing(); err != nil {
		return Suite{}, fmt.Errorf("%w: make build makes it", err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return Suite{}, err
	}
	for _, name := range []string{"repmgr", "repmgrd"} {
		b, err := os.ReadFile(filepath.Join(s.Bin, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, name), b, 0o755)
		}
		if err != nil {
			return Suite{}, fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return Ours(bin), nil
}

// outside starts the runs, so many side by side, and reports.
func outside(ctx context.Context, s Settings, stdout, stderr io.Writer) (problems int, err error) {
	if err := CanIsolate(); err != nil && !s.Plain {
		return 0, fmt.Errorf("network namespaces can not be had (try -plain): %w", err)
	}
	if err := os.MkdirAll(s.Out, 0o755); err != nil {
		return 0, err
	}
	for _, old := range globs(filepath.Join(s.Out, "run-*.jsonl")) {
		_ = os.Remove(old)
	}
	_ = os.RemoveAll(filepath.Join(s.Out, "findings"))
	began := time.Now()
	switch {
	case s.Plain:
		_, err = inside(ctx, s, stdout)
	case s.Outage > 0:
		err = s.outages(ctx, stdout, stderr)
	case s.Soak > 0:
		err = s.isolate(ctx, stdout, stderr, s.Seed, "-soak", s.Soak.String(), "-alone")
	default:
		err = s.runs(ctx, began, stdout, stderr)
	}
	results, errRead := readResults(s.Out)
	if len(results) == 0 {
		return 0, errors.Join(err, errRead, errors.New("no results"))
	}
	r := Report{Results: results, Began: began, Took: time.Since(began), Version: Ours(s.Bin).version(), Settings: s}
	for _, res := range results {
		if len(res.Problems) > 0 {
			problems++
		}
	}
	return problems, errors.Join(err, errRead, r.write(s.Out, stdout))
}

// runs starts run after run until there are enough faults.
func (s Settings) runs(ctx context.Context, began time.Time, stdout, stderr io.Writer) error {
	count := (s.Faults + s.PerRun - 1) / s.PerRun
	next := make(chan uint64)
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for range min(s.Jobs, count) {
		wg.Go(func() {
			for seed := range next {
				args := []string{}
				if s.Jobs == 1 {
					args = append(args, "-alone")
				}
				if err := s.isolate(ctx, stdout, stderr, seed, args...); err != nil && ctx.Err() == nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("seed %d: %w", seed, err))
					mu.Unlock()
				}
			}
		})
	}
	for i := range count {
		if ctx.Err() != nil || s.Budget > 0 && time.Since(began) > s.Budget {
			break
		}
		next <- s.Seed + uint64(i)
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// isolate does one run in namespaces of its own.
func (s Settings) isolate(ctx context.Context, stdout, stderr io.Writer, seed uint64, extra ...string) error {
	args := []string{
		"chaos", "-bin", absolute(s.Bin), "-pg-bindir", s.PgBin, "-out", absolute(s.Out), "-seed", fmt.Sprint(seed), "-per-run", fmt.Sprint(s.PerRun),
		"-topology", s.Topology, "-mode", s.Mode, "-only", s.Only, "-pairs", fmt.Sprint(s.Pairs), fmt.Sprintf("-v=%v", s.Verbose), fmt.Sprintf("-keep=%v", s.Keep), fmt.Sprintf("-each=%v", s.Each), fmt.Sprintf("-ext4=%v", s.Ext4), fmt.Sprintf("-sides=%v", s.Sides), "-suite", s.Suite,
	}
	code, err := Isolate(ctx, append(args, extra...), stdout, stderr)
	if err == nil && code > 1 {
		err = fmt.Errorf("the run ended with code %d", code)
	}
	return err
}

func absolute(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

// readResults reads what the runs have written.
func readResults(dir string) (all []Result, err error) {
	for _, path := range globs(filepath.Join(dir, "run-*.jsonl")) {
		f, errOpen := os.Open(path)
		if errOpen != nil {
			return all, errOpen
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var r Result
			if json.Unmarshal(lines.Bytes(), &r) == nil {
				all = append(all, r)
			}
		}
		_ = f.Close()
	}
	return all, nil
}
