// Command generate writes those files of the packages that are made from the programs and from the repository: the manual
// pages, the list of what is in the programs (SBOM), and the licences of it. scripts/packages runs it in the root of the repository:
//
//	generate BIN man DIR TIME      repmgr.1, repmgrd.1 and repmgr.conf.5
//	generate BIN sbom TIME         CycloneDX JSON, to standard output
//	generate BIN copyright         our licence, and those of the modules in the programs
//
// BIN is the directory of the programs, TIME is in seconds since 1970. The same input makes the same bytes.
package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// programs are repmgr and repmgrd, whose files are these.
type programs struct{ tool, daemon string }

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, args []string) error {
	usage := errors.New("usage: generate BIN man DIR TIME | BIN sbom TIME | BIN copyright")
	if len(args) < 2 {
		return usage
	}
	p := programs{filepath.Join(args[0], "repmgr"), filepath.Join(args[0], "repmgrd")}
	switch args = args[1:]; {
	case len(args) == 3 && args[0] == "man":
		at, err := seconds(args[2])
		if err != nil {
			return err
		}
		return p.manuals(args[1], at)
	case len(args) == 2 && args[0] == "sbom":
		at, err := seconds(args[1])
		if err != nil {
			return err
		}
		return p.sbom(out, at)
	case len(args) == 1 && args[0] == "copyright":
		return p.copyright(out)
	}
	return usage
}

func seconds(s string) (time.Time, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

// contents are the modules that were linked into the programs, by path, and the version of Go.
func (p programs) contents() (modules []*debug.Module, goVersion string, err error) {
	for _, program := range []string{p.tool, p.daemon} {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, "", fmt.Errorf("read what %s was built of: %w", program, err)
		}
		goVersion = strings.TrimPrefix(info.GoVersion, "go")
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules = append(modules, m)
		}
	}
	slices.SortFunc(modules, func(a, b *debug.Module) int { return cmp.Compare(a.Path, b.Path) })
	return slices.CompactFunc(modules, func(a, b *debug.Module) bool { return a.Path == b.Path }), goVersion, nil
}

// version is what the program says of itself.
func (p programs) version() (string, error) {
	out, err := exec.Command(p.tool, "--version").Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) < 2 {
		return "", fmt.Errorf("ask %s for its version: %w, %q", p.tool, err, out)
	}
	return words[1], nil
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl"`
	Hashes  []hash `json:"hashes,omitempty"` // of the module as go.sum has it
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

func golang(kind, path, version string) component {
	purl := "pkg:golang/" + path + "@" + version
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

// sbom lists every module of the programs, and the standard library.
func (p programs) sbom(out io.Writer, at time.Time) error {
	modules, goVersion, err := p.contents()
	if err != nil {
		return err
	}
	v, err := p.version()
	if err != nil {
		return err
	}
	app := golang("application", "github.com/pgrepmgr/repmgr", "v"+v)
	parts := []component{golang("library", "std", goVersion)}
	refs := []string{parts[0].Ref}
	for _, m := range modules {
		c := golang("library", m.Path, m.Version)
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
		if err != nil {
			return fmt.Errorf("read the sum of %s: %w", m.Path, err)
		}
		if len(sum) > 0 {
			c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
		}
		parts, refs = append(parts, c), append(refs, c.Ref)
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(map[string]any{
		"$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata":     map[string]any{"timestamp": at.Format(time.RFC3339), "component": app},
		"components":   parts,
		"dependencies": []map[string]any{{"ref": app.Ref, "dependsOn": refs}},
	})
}

// copyright prints the licences that have to go with the programs: ours, that of Go, and those of the modules.
func (p programs) copyright(out io.Writer) error {
	modules, _, err := p.contents()
	if err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("ask for the directory of Go: %w", err)
	}
	parts := []struct{ name, dir string }{{"repmgr for Go", "."}, {"Go's standard library", strings.TrimSpace(string(root))}}
	for _, m := range modules {
		dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", m.Path).Output()
		if err != nil {
			return fmt.Errorf("ask for the directory of %s: %w", m.Path, err)
		}
		parts = append(parts, struct{ name, dir string }{m.Path + " " + m.Version, strings.TrimSpace(string(dir))})
	}
	for _, part := range parts {
		var files []string
		for _, pattern := range []string{"LICEN[CS]E*", "COPYING*", "NOTICE*"} {
			found, err := filepath.Glob(filepath.Join(part.dir, pattern))
			if err != nil {
				return err
			}
			files = append(files, found...)
		}
		if len(files) == 0 {
			return fmt.Errorf("%s has no licence in %s: say so in packaging/generate, or do without it", part.name, part.dir)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "=== %s: %s\n\n%s\n\n", part.name, filepath.Base(file), bytes.TrimSpace(text)); err != nil {
				return err
			}
		}
	}
	return nil
}
