package archtest_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/pgrepmgr/repmgr"

// floors of the house, from the ground up. A package may import only what
// stands on a lower floor.
var floors = [][]string{
	{"wal", "conninfo", "plan", "internal/nowait", "internal/shell", "internal/durable", "internal/wait", "internal/failure", "internal/conffile", "internal/wording", "internal/pidfile", "internal/trouble", "pgfollow"},
	{"election", "ballot", "basebackup", "pgcontrol"},
	{"internal/settings"},
	{"postgres"},
	{"registry"},
	{"internal/postmaster", "internal/task", "internal/remote"},
	{"internal/datadir", "internal/salvage", "internal/service"},
	{"internal/rejoin"},
	{"internal/clone"},
	{"internal/voters", "internal/syncrep", "internal/follow"},
	{"health"},
	{"internal/outbox", "internal/statefile", "internal/streams", "internal/namesakes", "internal/fence"},
	{"internal/coordinator", "internal/switchover", "internal/reconcile", "explain", "report", "internal/observer"},
	{"doctor", "internal/restart", "internal/adopt", "internal/topology"},
	{"."},
	{"etcd", "web", "router", "repmgrtest"},
	{"internal/cli"},
	{"cmd/*", "examples/*", "packaging/*"},
	{"internal/manual", "internal/bench", "internal/compat", "internal/compat/debian", "internal/compat/packages", "internal/surfaces"}, // tests of the programs as a whole
}

// onlyForTests may be imported by _test.go files alone, and pgtest also by forTestsElsewhere.
var onlyForTests = []string{"internal/pgtest", "internal/daemontest", "internal/archtest", "internal/chaos", forTestsElsewhere}

// forTestsElsewhere is what the tests of other modules import.
const forTestsElsewhere = "repmgrtest"

// leaves import the standard library and wal, nothing else. The pure ones have
// no clock and do no I/O besides: time may only be arithmetic. pgcontrol reads
// the two files that it knows.
var (
	leaves = []string{"election", "wal", "pgcontrol"}
	pure   = []string{"election", "wal"}
)

type pkg struct {
	ImportPath, Dir, Name, Doc string
	Standard                   bool
	Module                     *struct {
		Path string
		Main bool
	}
	GoFiles, Imports, Deps []string
}

func (p pkg) own() bool { return p.Module != nil && p.Module.Main }

// place is the package's path inside the module, "." for the root.
func place(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func floor(place string) int {
	return slices.IndexFunc(floors, func(f []string) bool {
		return slices.ContainsFunc(f, func(pattern string) bool {
			ok, _ := path.Match(pattern, place)
			return ok
		})
	})
}

// list is every package of the module and everything they need, by import path.
var list = sync.OnceValues(func() (map[string]pkg, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Name,Doc,Standard,Module,GoFiles,Imports,Deps", module+"/...")
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
			err = errors.Join(err, errors.New(string(failed.Stderr)))
		}
		return nil, err
	}
	all := map[string]pkg{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all[p.ImportPath] = p
	}
})

func packages(t *testing.T) map[string]pkg {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go tool is not in PATH")
	}
	all, err := list()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return all
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	all := packages(t)
	for _, p := range all {
		from := place(p.ImportPath)
		if !p.own() || slices.Contains(onlyForTests, from) && from != forTestsElsewhere {
			continue
		}
		if floor(from) < 0 {
			t.Errorf("%s has no floor: give it one in floors, with a reason in docs/", from)
			continue
		}
		for _, i := range p.Imports {
			to := place(i)
			switch {
			case !all[i].own(), from == forTestsElsewhere && to == "internal/pgtest":
			case slices.Contains(onlyForTests, to):
				t.Errorf("%s imports %s outside of its tests", from, to)
			case floor(to) >= floor(from):
				t.Errorf("%s imports %s, which is not below it", from, to)
			}
		}
	}
}

func TestLeavesNeedOnlyTheStandardLibrary(t *testing.T) {
	t.Parallel()
	all := packages(t)
	for _, name := range leaves {
		for _, i := range all[module+"/"+name].Imports {
			if !all[i].Standard && i != module+"/wal" {
				t.Errorf("%s imports %s, want only the standard library and wal", name, i)
			}
		}
	}
}

func TestPurePackagesHaveNoClockAndNoIO(t *testing.T) {
	t.Parallel()
	all := packages(t)
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}
	outside := []string{"os", "net", "syscall", "log", "math/rand", "crypto/rand"}
	for _, name := range pure {
		p := all[module+"/"+name]
		for _, i := range p.Imports {
			if slices.ContainsFunc(outside, func(o string) bool { return i == o || strings.HasPrefix(i, o+"/") }) {
				t.Errorf("%s imports %s: it is pure", name, i)
			}
		}
		for _, file := range p.GoFiles {
			for _, used := range uses(t, filepath.Join(p.Dir, file), "time") {
				if slices.Contains(clock, used) {
					t.Errorf("%s/%s uses time.%s: it is pure, the time comes in", name, file, used)
				}
			}
		}
	}
}

// uses returns the names that file selects from the package imported as path.
func uses(t *testing.T, file, path string) (names []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	local := path
	for _, i := range f.Imports {
		if p, _ := strconv.Unquote(i.Path.Value); p == path && i.Name != nil {
			local = i.Name.Name
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				names = append(names, s.Sel.Name)
			}
		}
		return true
	})
	return names
}

func TestProgramsHoldNoTestCode(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if !p.own() || slices.Contains(onlyForTests, place(p.ImportPath)) {
			continue
		}
		for _, d := range p.Deps {
			if d == "testing" || strings.HasPrefix(d, "github.com/stretchr/testify") || strings.HasPrefix(d, "github.com/prometheus/") || slices.Contains(onlyForTests, place(d)) {
				t.Errorf("%s needs %s, which is for tests", place(p.ImportPath), d)
			}
		}
	}
}

// Whoever tests a service with repmgrtest gets no module but those that the library itself needs.
func TestTestsElsewhereGetNoFurtherModule(t *testing.T) {
	t.Parallel()
	all := packages(t)
	modules := func(place string) (found []string) {
		for _, d := range all[strings.TrimSuffix(module+"/"+place, "/")].Deps {
			if m := all[d].Module; m != nil && !slices.Contains(found, m.Path) {
				found = append(found, m.Path)
			}
		}
		return found
	}
	own := modules(forTestsElsewhere)
	if len(own) < 2 {
		t.Fatalf("%s needs %v: this test does not see what it needs", forTestsElsewhere, own)
	}
	library := modules("")
	for _, m := range own {
		if !slices.Contains(library, m) {
			t.Errorf("%s needs %s, which the library does not", forTestsElsewhere, m)
		}
	}
}

func TestEveryPackageHasADocAndAName(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if !p.own() {
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no package doc", place(p.ImportPath))
		}
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc", "shared"}, p.Name) {
			t.Errorf("%s is called %s: name what it knows", place(p.ImportPath), p.Name)
		}
	}
}

// The root is what an operator or an embedder has a word for: a stranger reads it in ten minutes.
func TestRootStaysSmall(t *testing.T) {
	t.Parallel()
	const maxFiles, maxLines = 22, 8000
	root := packages(t)[module]
	lines := 0
	for _, file := range root.GoFiles {
		text, err := os.ReadFile(filepath.Join(root.Dir, file))
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(text), "\n")
	}
	if len(root.GoFiles) > maxFiles || lines > maxLines {
		t.Errorf("the root has %d files and %d lines without tests, and may have %d and %d: machinery belongs in a room below, and a new word of the operator in the file of its verb", len(root.GoFiles), lines, maxFiles, maxLines)
	}
}
