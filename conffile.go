package repmgr

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of configuration files.
const (
	maxSyntaxErrors = 100     // of one file
	maxIncludeDepth = 10      // files above an included one
	maxConfFiles    = 1000    // read in all, so that includes can not multiply for ever
	maxConfBytes    = 1 << 20 // of one file
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
	r := confReader{}
	data, err := r.read(file)
	if err != nil {
		return Config{}, unreadable(path, err)
	}
	return r.load(file, data)
}

// load makes a Config of a file's text.
func (r *confReader) load(file string, data []byte) (Config, error) {
	r.parse(file, data, []string{realPath(file)})
	c := DefaultConfig()
	c.File = file
	bad := r.apply(&c)
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
	return &ConfigError{Faults: []Fault{{File: path, Problem: "cannot be read: " + pathReason(err)}}, cause: err}
}

// pathReason is the message without the path, which the fault has already.
func pathReason(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}

// realPath makes two names of one file equal, as far as it can be told.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// confEntry is a setting as it stands in a file.
type confEntry struct {
	place
	seq        int // the order in which lines take effect
	key, value string
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

// confReader reads a file and all that it includes.
type confReader struct {
	files, seq       int
	entries          []confEntry
	faults, warnings []seqFault
}

func (r *confReader) read(path string) ([]byte, error) {
	if r.files++; r.files > maxConfFiles {
		return nil, fmt.Errorf("more than %d files are included", maxConfFiles)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfBytes+1))
	if err == nil && len(data) > maxConfBytes {
		err = fmt.Errorf("it is larger than %d bytes", maxConfBytes)
	}
	return data, err
}

// parse takes the settings of a file. above are the files that are being read,
// this one included.
func (r *confReader) parse(file string, data []byte, above []string) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	syntax := 0
	line := 0
	for text := range strings.SplitSeq(string(data), "\n") {
		line++
		r.seq++
		e := confEntry{place: place{file: file, line: line}, seq: r.seq}
		var problem string
		e.key, e.value, problem = parseConfLine(text)
		switch include := strings.ToLower(e.key); {
		case problem != "":
			if syntax++; syntax > maxSyntaxErrors {
				r.fault(e, "", "too many syntax errors: the rest of the file was not read", "")
				return
			}
			r.fault(e, "", "syntax error "+problem, "a line is: key = 'value'; a value with spaces or special characters is quoted")
		case e.key == "":
		case include == "include", include == "include_if_exists":
			r.include(e, e.value, include == "include_if_exists", above)
		case include == "include_dir":
			r.includeDir(e, above)
		default:
			r.entries = append(r.entries, e)
		}
	}
}

func (r *confReader) fault(e confEntry, shown, problem, remedy string) {
	r.faults = append(r.faults, seqFault{e.seq, Fault{e.file, e.line, e.key, shown, problem, remedy}})
}

func (r *confReader) warn(e confEntry, problem, remedy string) {
	r.warnings = append(r.warnings, seqFault{e.seq, Fault{e.file, e.line, e.key, "", problem, remedy}})
}

// include reads a file that e names, relative to the file of e.
func (r *confReader) include(e confEntry, path string, optional bool, above []string) {
	if path == "" {
		r.fault(e, "", "must name a file", "")
		return
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(e.file), path)
	}
	real := realPath(path)
	switch {
	case slices.Contains(above, real):
		r.fault(e, path, "includes a file that is being read already", "")
		return
	case len(above) > maxIncludeDepth:
		r.fault(e, path, fmt.Sprintf("is nested too deep: at most %d levels", maxIncludeDepth), "")
		return
	}
	data, err := r.read(path)
	switch {
	case optional && errors.Is(err, fs.ErrNotExist):
	case err != nil:
		r.fault(e, path, "cannot be read: "+pathReason(err), "")
	default:
		r.parse(path, data, append(slices.Clone(above), real))
	}
}

// includeDir reads the *.conf of a directory in the order of their bytes,
// without those whose name begins with a dot.
func (r *confReader) includeDir(e confEntry, above []string) {
	dir := e.value
	if dir == "" {
		r.fault(e, "", "must name a directory", "")
		return
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(filepath.Dir(e.file), dir)
	}
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		r.fault(e, dir, "cannot be read: "+pathReason(err), "")
		return
	}
	for _, entry := range entries {
		name := entry.Name()
		info, err := os.Stat(filepath.Join(dir, name))
		if !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") || err == nil && info.IsDir() {
			continue
		}
		r.include(e, filepath.Join(dir, name), false, above)
	}
}

// apply gives the settings to c, and returns the keys that have a fault. Of a
// repeated key the last counts; a key's own name counts before its aliases.
func (r *confReader) apply(c *Config) (bad map[string]bool) {
	bad, c.places = map[string]bool{}, map[string]place{}
	own, aliased := map[string][]confEntry{}, map[string][]confEntry{}
	for _, e := range r.entries {
		switch alias, ok := confAliases[e.key]; {
		case ok:
			aliased[alias.key] = append(aliased[alias.key], e)
		case slices.ContainsFunc(confKeys, func(k confKey) bool { return k.name == e.key }):
			own[e.key] = append(own[e.key], e)
		default:
			remedy := ""
			if name := similarKey(e.key); name != "" {
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
			case confAliases[e.key].deprecated:
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
			if problem := k.set(c, e.value); problem != "" {
				shown := e.value
				if k.redact != nil {
					shown = k.redact(shown)
				}
				r.fault(e, shown, problem, "")
				bad[k.name] = true
			}
			e.place.value = k.get(c)
			c.places[k.name] = e.place
		}
	}
	return bad
}

// similarKey returns the known key that is at most two letters away, or "".
func similarKey(name string) string {
	best, most := "", 3
	for _, k := range confKeys {
		if d := editDistance(strings.ToLower(name), k.name); d < most {
			best, most = k.name, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// The words of postgresql.conf, which repmgr.conf shares. A number may have the
// letters of a unit right behind it.
var (
	confKeyWord  = regexp.MustCompile(`^[A-Za-z_\x{80}-\x{10ffff}][A-Za-z_0-9\x{80}-\x{10ffff}]*(\.[A-Za-z_\x{80}-\x{10ffff}][A-Za-z_0-9\x{80}-\x{10ffff}]*)?`)
	confBareWord = regexp.MustCompile(`^[A-Za-z_\x{80}-\x{10ffff}][-A-Za-z_0-9\x{80}-\x{10ffff}._:/]*`)
	confInteger  = regexp.MustCompile(`^[+-]?(0x[0-9a-fA-F]+|[0-9]+)[a-zA-Z]*`)
	confReal     = regexp.MustCompile(`^[+-]?[0-9]*\.[0-9]*([eE][+-]?[0-9]+)?`)
)

// parseConfLine reads one line: a key, perhaps "=", a value, perhaps a comment.
// An empty line has no key. The problem names a column and nothing of the text,
// which may be a secret.
func parseConfLine(text string) (key, value, problem string) {
	rest := text
	skip := func(n int) { rest = strings.TrimLeft(rest[n:], " \t\r") }
	at := func(what string) string { return fmt.Sprintf("at column %d: %s", len(text)-len(rest)+1, what) }
	atEnd := func() bool { return rest == "" || rest[0] == '#' }

	skip(0)
	if atEnd() {
		return "", "", ""
	}
	key = longest(rest, confKeyWord)
	if key == "" {
		return "", "", at("expected a key")
	}
	skip(len(key))
	if strings.HasPrefix(rest, "=") {
		skip(1)
	}
	switch {
	case atEnd():
		return key, "", at("expected a value")
	case rest[0] == '\'':
		n := quotedLen(rest)
		if n == 0 {
			return key, "", at("the quoted value has no end")
		}
		value = unquoteConf(rest[1 : n-1])
		skip(n)
	default:
		if value = longest(rest, confBareWord, confInteger, confReal); value == "" {
			return key, "", at("expected a value, quoted unless it is a plain word or number")
		}
		skip(len(value))
	}
	if !atEnd() {
		return key, "", at("unexpected text after the value")
	}
	return key, value, ""
}

// longest returns the longest match, as a lexer takes it.
func longest(s string, words ...*regexp.Regexp) string {
	best := ""
	for _, w := range words {
		if m := w.FindString(s); len(m) > len(best) {
			best = m
		}
	}
	return best
}

// quotedLen returns the length of the quoted value that s begins with, quotes
// included, or 0 if it has no end.
func quotedLen(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\', strings.HasPrefix(s[i:], "''"):
			i++
		case s[i] == '\'':
			return i + 1
		}
	}
	return 0
}

var confEscapes = map[byte]byte{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unquoteConf undoes the escapes of a quoted value: a doubled quote or \' for a
// quote, \b \f \n \r \t, and \ with up to three octal digits.
func unquoteConf(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\'':
			i++ // doubled
		case c == '\\' && i+1 < len(s):
			i++
			c = s[i]
			octal := 0
			for octal < 3 && i+octal < len(s) && s[i+octal] >= '0' && s[i+octal] <= '7' {
				octal++
			}
			if octal > 0 {
				n, _ := strconv.ParseUint(s[i:i+octal], 8, 16)
				c = byte(n)
				i += octal - 1
			} else if e, ok := confEscapes[c]; ok {
				c = e
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}
