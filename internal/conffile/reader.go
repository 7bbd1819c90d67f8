package conffile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Limits of configuration files.
const (
	MaxSyntaxErrors = 100     // of one file
	MaxDepth        = 10      // files above an included one
	MaxFiles        = 1000    // read in all, so that includes can not multiply for ever
	MaxBytes        = 1 << 20 // of one file
)

// Entry is a setting as it stands in a file.
type Entry struct {
	File       string
	Line       int // from 1
	Seq        int // the order in which lines take effect
	Key, Value string
}

// Fault is something wrong with an entry. Shown is what may be shown of the value.
type Fault struct {
	Entry
	Shown, Problem, Remedy string
}

// Describe says what is wrong in the form file:line: key "priority" = "-3": must be an
// integer of 0 or more. What is empty is left out.
func Describe(file string, line int, key, value, problem string) string {
	var b strings.Builder
	if file != "" {
		b.WriteString(file)
		if line > 0 {
			b.WriteString(":" + strconv.Itoa(line))
		}
		b.WriteString(": ")
	}
	if key != "" {
		fmt.Fprintf(&b, "key %q", key)
		if value != "" {
			fmt.Fprintf(&b, " = %q", value)
		}
		b.WriteString(": ")
	}
	b.WriteString(problem)
	return b.String()
}

// Read reads a file, named by its absolute path, and all that it includes. The error is
// that of the file itself; what is wrong in it, or with what it includes, is in faults.
func Read(file string) (entries []Entry, faults []Fault, err error) {
	r := reader{}
	data, err := r.read(file)
	if err != nil {
		return nil, nil, err
	}
	r.parse(file, data, []string{RealPath(file)})
	return r.entries, r.faults, nil
}

// Parse is Read for the text of a file.
func Parse(file string, data []byte) (entries []Entry, faults []Fault) {
	r := reader{}
	r.parse(file, data, []string{RealPath(file)})
	return r.entries, r.faults
}

// reader reads a file and all that it includes.
type reader struct {
	files, seq int
	entries    []Entry
	faults     []Fault
}

func (r *reader) read(path string) ([]byte, error) {
	if r.files++; r.files > MaxFiles {
		return nil, fmt.Errorf("more than %d files are included", MaxFiles)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err == nil && len(data) > MaxBytes {
		err = fmt.Errorf("it is larger than %d bytes", MaxBytes)
	}
	return data, err
}

// parse takes the settings of a file. above are the files that are being read,
// this one included.
func (r *reader) parse(file string, data []byte, above []string) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	syntax := 0
	line := 0
	for text := range strings.SplitSeq(string(data), "\n") {
		line++
		r.seq++
		e := Entry{File: file, Line: line, Seq: r.seq}
		var problem string
		e.Key, e.Value, problem = parseLine(text)
		switch include := strings.ToLower(e.Key); {
		case problem != "":
			if syntax++; syntax > MaxSyntaxErrors {
				r.fault(e, "", "too many syntax errors: the rest of the file was not read", "")
				return
			}
			r.fault(e, "", "syntax error "+problem, "a line is: key = 'value'; a value with spaces or special characters is quoted")
		case e.Key == "":
		case include == "include", include == "include_if_exists":
			r.include(e, e.Value, include == "include_if_exists", above)
		case include == "include_dir":
			r.includeDir(e, above)
		default:
			r.entries = append(r.entries, e)
		}
	}
}

func (r *reader) fault(e Entry, shown, problem, remedy string) {
	r.faults = append(r.faults, Fault{e, shown, problem, remedy})
}

// include reads a file that e names, relative to the file of e.
func (r *reader) include(e Entry, path string, optional bool, above []string) {
	if path == "" {
		r.fault(e, "", "must name a file", "")
		return
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(e.File), path)
	}
	real := RealPath(path)
	switch {
	case slices.Contains(above, real):
		r.fault(e, path, "includes a file that is being read already", "")
		return
	case len(above) > MaxDepth:
		r.fault(e, path, fmt.Sprintf("is nested too deep: at most %d levels", MaxDepth), "")
		return
	}
	data, err := r.read(path)
	switch {
	case optional && errors.Is(err, fs.ErrNotExist):
	case err != nil:
		r.fault(e, path, "cannot be read: "+Reason(err), "")
	default:
		r.parse(path, data, append(slices.Clone(above), real))
	}
}

// includeDir reads the *.conf of a directory in the order of their bytes,
// without those whose name begins with a dot.
func (r *reader) includeDir(e Entry, above []string) {
	dir := e.Value
	if dir == "" {
		r.fault(e, "", "must name a directory", "")
		return
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(filepath.Dir(e.File), dir)
	}
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		r.fault(e, dir, "cannot be read: "+Reason(err), "")
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

// Reason is the message without the path, which the fault has already.
func Reason(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}

// RealPath makes two names of one file equal, as far as it can be told.
func RealPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// Find returns the absolute path of the file of that name: the first in dirs, else that in
// the directory below versions that is named by the highest number.
func Find(name string, dirs []string, versions string) (path string, found bool, err error) {
	entries, _ := os.ReadDir(versions) // unreadable is as good as absent
	number := func(e fs.DirEntry) int { n, _ := strconv.Atoi(e.Name()); return n }
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(number(b), number(a)) })
	for _, e := range entries {
		if number(e) > 0 {
			dirs = append(dirs, filepath.Join(versions, e.Name()))
		}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			path, err = filepath.Abs(path)
			return path, err == nil, err
		}
	}
	return "", false, nil
}
