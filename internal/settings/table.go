package settings

import (
	"fmt"
	"iter"
	"slices"

	"github.com/pgrepmgr/repmgr/internal/conffile"
)

// Table is the keys of a configuration, in the order in which they are checked and shown.
type Table[T any] []Key[T]

// Key connects a key of the file with a field of T.
type Key[T any] struct {
	Name   string
	Reload bool                    // a running program takes a change of it over
	Set    func(*T, string) string // parses a value; returns what is wrong with it, or ""
	Get    func(*T) string         // the value as a file has it

	aliases    []string
	deprecated []string
	fill       func(*T)        // gives a zero field its default
	check      func(*T) string // what is wrong with the field, or ""
	copy       func(dst, src *T)
	list       func(*T) []string   // of a key that may be repeated: its values
	redact     func(string) string // nil: the value holds no secret
	hide       func(*T)            // replaces the secrets in the field
}

// OnReload makes a key one that a running program takes over.
func (k Key[T]) OnReload() Key[T] {
	k.Reload = true
	return k
}

// Alias gives a key another name.
func (k Key[T]) Alias(name string) Key[T] {
	k.aliases = append(k.aliases, name)
	return k
}

// Formerly gives a key its names of old, which are accepted with a warning.
func (k Key[T]) Formerly(names ...string) Key[T] {
	k.deprecated = append(k.deprecated, names...)
	return k
}

// Shown is the value without its secrets.
func (k Key[T]) Shown(c *T) string {
	if k.redact != nil {
		return k.redact(k.Get(c))
	}
	return k.Get(c)
}

// Key returns a key that exists.
func (t Table[T]) Key(name string) Key[T] {
	return t[slices.IndexFunc(t, func(k Key[T]) bool { return k.Name == name })]
}

// Fill gives each zero field its default.
func (t Table[T]) Fill(c *T) {
	for _, k := range t {
		k.fill(c)
	}
}

// Taken is what came of reading a file.
type Taken struct {
	Faults, Warnings []conffile.Fault // in the order of the lines
	Bad              map[string]bool  // the keys that have a fault
	Places           Places
}

// Places are the lines that set each key, with the values that were taken from there.
type Places map[string]conffile.Entry

// Take gives the settings of a file to c; broken is what was wrong with the file's grammar.
// Of a repeated key the last counts; a key's own name counts before its aliases. An unknown
// key is a warning.
func (t Table[T]) Take(c *T, all []conffile.Entry, broken []conffile.Fault) Taken {
	r := Taken{Faults: broken, Bad: map[string]bool{}, Places: Places{}}
	warn := func(e conffile.Entry, problem, remedy string) {
		r.Warnings = append(r.Warnings, conffile.Fault{Entry: e, Problem: problem, Remedy: remedy})
	}
	own, aliased := t.sort(all, warn)
	for _, k := range t {
		entries := own[k.Name]
		for _, e := range aliased[k.Name] {
			switch {
			case len(entries) > 0:
				warn(e, fmt.Sprintf("ignored, because %q is set", k.Name), "remove it")
			case slices.Contains(k.deprecated, e.Key):
				warn(e, fmt.Sprintf("deprecated, taken as %q", k.Name), fmt.Sprintf("write %q", k.Name))
			}
		}
		if len(entries) == 0 {
			entries = aliased[k.Name]
		}
		if k.list == nil && len(entries) > 1 {
			entries = entries[len(entries)-1:]
		}
		for _, e := range entries {
			if problem := k.Set(c, e.Value); problem != "" {
				shown := e.Value
				if k.redact != nil {
					shown = k.redact(shown)
				}
				r.Faults = append(r.Faults, conffile.Fault{Entry: e, Shown: shown, Problem: problem})
				r.Bad[k.Name] = true
			}
			r.Places[k.Name] = conffile.Entry{File: e.File, Line: e.Line, Key: k.Name, Value: k.Get(c)}
		}
	}
	slices.SortStableFunc(r.Faults, bySeq)
	slices.SortStableFunc(r.Warnings, bySeq)
	return r
}

func bySeq(a, b conffile.Fault) int { return a.Seq - b.Seq }

// sort puts the settings of a file to their keys, by the keys' own names and by aliases.
func (t Table[T]) sort(all []conffile.Entry, warn func(e conffile.Entry, problem, remedy string)) (own, aliased map[string][]conffile.Entry) {
	own, aliased = map[string][]conffile.Entry{}, map[string][]conffile.Entry{}
	var names []string
	keys := map[string]string{} // of every alias
	for _, k := range t {
		names = append(names, k.Name)
		for _, name := range slices.Concat(k.aliases, k.deprecated) {
			keys[name] = k.Name
		}
	}
	for _, e := range all {
		switch key, ok := keys[e.Key]; {
		case ok:
			aliased[key] = append(aliased[key], e)
		case slices.Contains(names, e.Key):
			own[e.Key] = append(own[e.Key], e)
		default:
			remedy := ""
			if name := conffile.Similar(e.Key, names); name != "" {
				remedy = fmt.Sprintf("did you mean %q?", name)
			}
			warn(e, "unknown key, ignored", remedy)
		}
	}
	return own, aliased
}

// Check returns what is wrong with the fields, and the keys that have a fault.
func (t Table[T]) Check(c *T, at Places) (faults []conffile.Fault, bad map[string]bool) {
	bad = map[string]bool{}
	for _, k := range t {
		if problem := k.check(c); problem != "" {
			faults = append(faults, t.Fault(c, at, k.Name, problem, ""))
			bad[k.Name] = true
		}
	}
	return faults, bad
}

// Fault describes a problem with a key, where the file sets it: a value that the program has
// changed since has no line.
func (t Table[T]) Fault(c *T, at Places, key, problem, remedy string) conffile.Fault {
	k := t.Key(key)
	e := at[key]
	if e.Value != k.Get(c) {
		e = conffile.Entry{}
	}
	e.Key = key
	return conffile.Fault{Entry: e, Shown: k.Shown(c), Problem: problem, Remedy: remedy}
}

// Rule is something that two keys must keep between them.
type Rule struct {
	ok                       bool
	key, problem, other, fix string
}

// Expect makes a rule. Where it is not ok, key has the problem with other; fix is what to do
// about it, where that is not plain.
func Expect(ok bool, key, problem, other, fix string) Rule {
	return Rule{ok, key, problem, other, fix}
}

// Conflicts returns the rules that are broken. A key in bad has its own fault already, and
// its rules are left out.
func (t Table[T]) Conflicts(c *T, at Places, bad map[string]bool, rules ...Rule) (faults []conffile.Fault) {
	for _, r := range rules {
		if r.ok || bad[r.key] || bad[r.other] {
			continue
		}
		f := t.Fault(c, at, r.key, fmt.Sprintf("%s %q = %q", r.problem, r.other, t.Key(r.other).Shown(c)), r.fix)
		if f.File == "" { // it is a default: the other one is to blame
			other := t.Fault(c, at, r.other, "", "")
			f.File, f.Line = other.File, other.Line
		}
		faults = append(faults, f)
	}
	return faults
}

// Hide replaces the secrets in c.
func (t Table[T]) Hide(c *T) {
	for _, k := range t {
		if k.hide != nil {
			k.hide(c)
		}
	}
}

// Differences shows the settings of c that are not the same in other, without secrets, with
// a blank behind each.
func (t Table[T]) Differences(c, other *T) (text string) {
	for _, k := range t {
		if k.Get(c) != k.Get(other) {
			text += fmt.Sprintf("%s=%q ", k.Name, k.Shown(c))
		}
	}
	return text
}

// All are the keys and their values without secrets. A key that may be repeated comes once
// for each of its values.
func (t Table[T]) All(c *T) iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		for _, k := range t {
			values := []string{k.Shown(c)}
			if k.list != nil {
				values = k.list(c)
			}
			for _, value := range values {
				if !yield(k.Name, value) {
					return
				}
			}
		}
	}
}

// Changed returns the keys that are not the same in next: those that a running program takes
// over, and the others.
func (t Table[T]) Changed(c, next *T) (reloadable, others []string) {
	for _, k := range t {
		switch {
		case k.Get(c) == k.Get(next):
		case k.Reload:
			reloadable = append(reloadable, k.Name)
		default:
			others = append(others, k.Name)
		}
	}
	return reloadable, others
}

// Reload copies the fields that a running program takes over from next to c.
func (t Table[T]) Reload(c, next *T) {
	for _, k := range t {
		if k.Reload {
			k.copy(c, next)
		}
	}
}
