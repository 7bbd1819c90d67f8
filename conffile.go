package repmgr

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/internal/conffile"
)

// Fault is something wrong with the configuration. None of its fields holds a
// secret: Value is redacted, and text that can not be read is not quoted.
type Fault struct {
	File    string `json:"file,omitempty"` // empty: set by a program
	Line    int    `json:"line,omitempty"` // from 1; 0: no particular line
	Key     string `json:"key,omitempty"`
	Value   string `json:"value,omitempty"`
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"` // what to do about it, where that is not plain
}

// String has the form file:line: key "priority" = "-3": must be an integer of 0 or more.
func (f Fault) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			b.WriteString(":" + strconv.Itoa(f.Line))
		}
		b.WriteString(": ")
	}
	if f.Key != "" {
		fmt.Fprintf(&b, "key %q", f.Key)
		if f.Value != "" {
			fmt.Fprintf(&b, " = %q", f.Value)
		}
		b.WriteString(": ")
	}
	b.WriteString(f.Problem)
	return b.String()
}

// ConfigError is everything that is wrong with a configuration. [errors.Is]
// finds it by [ErrConfig].
type ConfigError struct {
	Faults []Fault
	cause  error
}

// Error has a line for each fault.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

func (e *ConfigError) Is(target error) bool { return target == ErrConfig }
func (e *ConfigError) Unwrap() error        { return e.cause }

// configError returns nil where there is no fault.
func configError(faults []Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &ConfigError{Faults: faults}
}

// FindConfig returns the path of the configuration file to use, and whether
// there is one. An explicit path is the only candidate, and must exist. Else the
// first of these is taken:
//
//	./repmgr.conf
//	repmgr.conf in the directory of the running program
//	/etc/repmgr.conf
//	/etc/repmgr/NN/repmgr.conf of the highest NN
//
// The path returned is absolute. Finding none is no error: not every command
// needs a file.
func FindConfig(explicit string) (path string, found bool, err error) {
	if explicit != "" {
		path, err = filepath.Abs(explicit)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return "", false, hint(unreadable(explicit, err), "Name the configuration file with -f, as a user who may read it.")
		}
		return path, true, nil
	}
	dirs := []string{"."}
	if program, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(program))
	}
	return findConfig(append(dirs, "/etc"), "/etc/repmgr")
}

// findConfig looks into dirs, then into the numbered directories below versions.
func findConfig(dirs []string, versions string) (path string, found bool, err error) {
	entries, _ := os.ReadDir(versions) // unreadable is as good as absent
	number := func(e fs.DirEntry) int { n, _ := strconv.Atoi(e.Name()); return n }
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(number(b), number(a)) })
	for _, e := range entries {
		if number(e) > 0 {
			dirs = append(dirs, filepath.Join(versions, e.Name()))
		}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, "repmgr.conf")
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			path, err = filepath.Abs(path)
			return path, err == nil, err
		}
	}
	return "", false, nil
}

// LoadConfig reads a repmgr.conf, of repmgr 1 or of repmgr 5, and what it
// includes. The values in force are those that the file sets last, defaults
// elsewhere, checked as by [Config.Validate]. Everything that is wrong comes back
// at once, as a [*ConfigError]; what is merely odd is in [Config.Warnings].
func LoadConfig(path string) (Config, error) {
	file, err := filepath.Abs(path)
	if err != nil || path == "" {
		return Config{}, unreadable(path, cmp.Or(err, fs.ErrNotExist))
	}
	entries, faults, err := conffile.Read(file)
	if err != nil {
		return Config{}, unreadable(path, err)
	}
	return configOf(file, entries, faults)
}

// configOf makes a Config of what stands in a file.
func configOf(file string, entries []conffile.Entry, broken []conffile.Fault) (Config, error) {
	r := confApplier{}
	for _, f := range broken {
		r.fault(f.Entry, f.Shown, f.Problem, f.Remedy)
	}
	c := DefaultConfig()
	c.File = file
	bad := r.apply(&c, entries)
	c = c.withDefaults()
	slices.SortStableFunc(r.faults, func(a, b seqFault) int { return a.seq - b.seq })
	slices.SortStableFunc(r.warnings, func(a, b seqFault) int { return a.seq - b.seq })
	faults := append(plain(r.faults), c.conflicts(bad)...)
	if len(faults) > 0 {
		return Config{}, configError(faults)
	}
	c.Warnings = plain(r.warnings)
	return c, nil
}

func unreadable(path string, err error) error {
	return &ConfigError{Faults: []Fault{{File: path, Problem: "cannot be read: " + conffile.Reason(err)}}, cause: err}
}

type seqFault struct {
	seq int
	Fault
}

func plain(faults []seqFault) []Fault {
	var all []Fault
	for _, f := range faults {
		all = append(all, f.Fault)
	}
	return all
}

// confApplier gives settings to a Config, and collects what is wrong with them.
type confApplier struct{ faults, warnings []seqFault }

func (r *confApplier) fault(e conffile.Entry, shown, problem, remedy string) {
	r.faults = append(r.faults, seqFault{e.Seq, Fault{e.File, e.Line, e.Key, shown, problem, remedy}})
}

func (r *confApplier) warn(e conffile.Entry, problem, remedy string) {
	r.warnings = append(r.warnings, seqFault{e.Seq, Fault{e.File, e.Line, e.Key, "", problem, remedy}})
}

// apply gives the settings to c, and returns the keys that have a fault. Of a
// repeated key the last counts; a key's own name counts before its aliases.
func (r *confApplier) apply(c *Config, all []conffile.Entry) (bad map[string]bool) {
	bad, c.places = map[string]bool{}, map[string]place{}
	own, aliased := map[string][]conffile.Entry{}, map[string][]conffile.Entry{}
	for _, e := range all {
		switch alias, ok := confAliases[e.Key]; {
		case ok:
			aliased[alias.key] = append(aliased[alias.key], e)
		case slices.ContainsFunc(confKeys, func(k confKey) bool { return k.name == e.Key }):
			own[e.Key] = append(own[e.Key], e)
		default:
			remedy := ""
			if name := conffile.Similar(e.Key, confKeyNames()); name != "" {
				remedy = fmt.Sprintf("did you mean %q?", name)
			}
			r.warn(e, "unknown key, ignored", remedy)
		}
	}
	for _, k := range confKeys {
		entries := own[k.name]
		for _, e := range aliased[k.name] {
			switch {
			case len(entries) > 0:
				r.warn(e, fmt.Sprintf("ignored, because %q is set", k.name), "remove it")
			case confAliases[e.Key].deprecated:
				r.warn(e, fmt.Sprintf("deprecated, taken as %q", k.name), fmt.Sprintf("write %q", k.name))
			}
		}
		if len(entries) == 0 {
			entries = aliased[k.name]
		}
		if k.list == nil && len(entries) > 1 {
			entries = entries[len(entries)-1:]
		}
		for _, e := range entries {
			if problem := k.set(c, e.Value); problem != "" {
				shown := e.Value
				if k.redact != nil {
					shown = k.redact(shown)
				}
				r.fault(e, shown, problem, "")
				bad[k.name] = true
			}
			c.places[k.name] = place{e.File, e.Line, k.get(c)}
		}
	}
	return bad
}

func confKeyNames() (names []string) {
	for _, k := range confKeys {
		names = append(names, k.name)
	}
	return names
}
