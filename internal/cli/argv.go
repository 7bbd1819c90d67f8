package cli

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/alecthomas/kong"
)

// Line is a command line in order: what GNU getopt's users may write in any
// order and shortened, kong gets with the command words first and every option
// by its full name.
type Line struct {
	Args     []string   // for kong: command words, options, operands
	Node     *kong.Node // the command, or the group or application where words are missing
	Given    []string   // full names of the options that stand there
	Warnings []string
	Faults   []string // all that is wrong, not only the first of it
}

// Has says whether the option of that full name stands in the line.
func (l Line) Has(option string) bool { return slices.Contains(l.Given, option) }

// Arrange puts a command line in order. The grammar decides by its tags:
//
//   - an option may stand before, between or after the command words, with "-"
//     or "_" inside its name, and shortened as long as it is unambiguous;
//   - command words are taken in any case;
//   - an option that only other commands know is left out with a warning, and so
//     is one with the tag noeffect:"why";
//   - values are checked against their type, enum:"" and min:"", options against xor:"".
func Arrange(app *kong.Application, argv []string) Line {
	a := arranger{app: app, byName: map[string]*option{}, byShort: map[rune]*option{}}
	a.learn(app.Node)
	a.learnOwn(argv)
	a.scan(argv)
	a.command()
	a.options()
	a.line.Args = append(append(a.words, a.flags...), "--")
	a.line.Args = append(a.line.Args, a.operands...)
	return a.line
}

type arity int

const (
	noValue arity = iota
	optionalValue
	needsValue
)

// option is one name on the command line: it may be a flag of several commands.
type option struct {
	name  string
	arity arity
	glued bool // its short form may have its value right behind it, as -dfalse
}

// given is an option as it stands on the command line.
type given struct {
	option *option
	value  *string
}

type arranger struct {
	app      *kong.Application
	byName   map[string]*option
	byShort  map[rune]*option
	given    []given
	words    []string
	flags    []string
	operands []string
	line     Line
}

func plain(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// learn collects the options of a command and of those below it.
func (a *arranger) learn(node *kong.Node) {
	for _, f := range node.Flags {
		o := a.byName[plain(f.Name)]
		if o == nil {
			o = optionOf(f)
		}
		for _, name := range append([]string{f.Name}, f.Aliases...) {
			a.byName[plain(name)] = o
		}
		if f.Short != 0 {
			a.byShort[f.Short] = o
		}
	}
	for _, child := range node.Children {
		a.learn(child)
	}
}

func optionOf(f *kong.Flag) *option {
	o := &option{name: f.Name}
	switch {
	case !f.IsBool():
		o.arity = needsValue
	case f.Target.Kind() != reflect.Bool || f.HasDefault:
		o.arity = optionalValue
		o.glued = f.Target.Kind() == reflect.Bool
	}
	return o
}

// learnOwn gives way to the options of the command whose words stand side by side in the line, where
// another command has an option of the same name that takes a value and this one does not.
func (a *arranger) learnOwn(argv []string) {
	for i := range argv {
		node := a.app.Node
		for _, word := range argv[i:] {
			child := findChild(node, word)
			if child == nil {
				break
			}
			node = child
		}
		if node == a.app.Node || len(node.Children) > 0 {
			continue
		}
		for _, f := range node.Flags {
			if o := optionOf(f); f.Short == 0 && a.byName[plain(f.Name)].arity != o.arity {
				a.byName[plain(f.Name)] = o
			}
		}
		return
	}
}

func (a *arranger) fault(format string, args ...any) {
	a.line.Faults = append(a.line.Faults, fmt.Sprintf(format, args...))
}

// scan tells options from operands.
func (a *arranger) scan(argv []string) {
	for len(argv) > 0 {
		arg := argv[0]
		argv = argv[1:]
		switch {
		case arg == "--":
			a.operands = append(a.operands, argv...)
			return
		case strings.HasPrefix(arg, "--"):
			argv = a.long(arg, argv)
		case len(arg) > 1 && arg[0] == '-':
			argv = a.short(arg, argv)
		default:
			a.operands = append(a.operands, arg)
		}
	}
}

func (a *arranger) long(arg string, rest []string) []string {
	name, value, hasValue := strings.Cut(arg[2:], "=")
	o := a.lookup(name)
	switch {
	case o == nil:
		return rest
	case hasValue && o.arity == noValue:
		a.fault("option --%s takes no value", o.name)
	case hasValue:
		a.given = append(a.given, given{o, &value})
	case o.arity != needsValue:
		a.given = append(a.given, given{o, nil})
	case len(rest) == 0:
		a.fault("option --%s needs a value", o.name)
	default:
		a.given = append(a.given, given{o, &rest[0]})
		return rest[1:]
	}
	return rest
}

// lookup finds an option by its name, or by an unambiguous beginning of it.
func (a *arranger) lookup(name string) *option {
	if o := a.byName[plain(name)]; o != nil {
		return o
	}
	found := map[string]*option{}
	for full, o := range a.byName {
		if strings.HasPrefix(full, plain(name)) {
			found[o.name] = o
		}
	}
	names := slices.Sorted(maps.Keys(found))
	switch len(names) {
	case 0:
		a.fault("unknown option --%s", name)
		return nil
	case 1:
		return found[names[0]]
	default:
		a.fault("option --%s is ambiguous: --%s", name, strings.Join(names, ", --"))
		return nil
	}
}

// short reads -x, -xVALUE, -x VALUE and bundles such as -cF. A value that may be
// left out stands only right behind a switch, never behind a --wait[=N].
func (a *arranger) short(arg string, rest []string) []string {
	for letters := arg[1:]; letters != ""; {
		r, size := utf8.DecodeRuneInString(letters)
		tail := letters[size:]
		letters = tail
		o := a.byShort[r]
		switch {
		case o == nil:
			a.fault("unknown option -%c", r)
		case o.arity != needsValue && (tail == "" || !o.glued):
			a.given = append(a.given, given{o, nil})
		case tail != "":
			a.given = append(a.given, given{o, &tail})
			return rest
		case len(rest) == 0:
			a.fault("option -%c needs a value", r)
		default:
			a.given = append(a.given, given{o, &rest[0]})
			return rest[1:]
		}
	}
	return rest
}

// command takes the command words from the front of the operands.
func (a *arranger) command() {
	for _, g := range a.given {
		a.line.Given = append(a.line.Given, g.option.name)
	}
	node := a.app.Node
	for len(node.Children) > 0 && len(a.operands) > 0 {
		child := findChild(node, a.operands[0])
		if child == nil {
			a.fault("unknown %s %q: %s", wordKind(node), a.operands[0], a.known(node))
			break
		}
		node, a.words, a.operands = child, append(a.words, child.Name), a.operands[1:]
	}
	a.line.Node = node
	help := a.line.Has("help")
	switch {
	case len(a.line.Faults) > 0 || help:
	case len(node.Children) > 0 && node.Parent != nil:
		a.fault("%s needs an action: %s", node.Name, a.known(node))
	case len(a.operands) > len(node.Positional):
		a.fault("too many arguments, beginning with %q", a.operands[len(node.Positional)])
	}
	for i, p := range node.Positional {
		switch {
		case help || len(a.line.Faults) > 0:
		case i >= len(a.operands) && p.Required:
			a.fault("%s needs an argument: %s", strings.Join(a.words, " "), or(strings.ReplaceAll(p.Tag.Get("oneof"), ",", ", "), p.Name))
		case i < len(a.operands) && p.Tag.Get("oneof") != "" && !oneOf(p.Tag.Get("oneof"), a.operands[i]):
			a.fault("unknown argument %q: %s", a.operands[i], strings.ReplaceAll(p.Tag.Get("oneof"), ",", ", "))
		}
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func findChild(node *kong.Node, word string) *kong.Node {
	for _, c := range node.Children {
		if strings.EqualFold(c.Name, word) || slices.ContainsFunc(c.Aliases, func(s string) bool { return strings.EqualFold(s, word) }) {
			return c
		}
	}
	return nil
}

func wordKind(node *kong.Node) string {
	if node.Parent == nil {
		return "command"
	}
	return node.Name + " action"
}

// known lists what may follow.
func (a *arranger) known(node *kong.Node) string {
	var names []string
	for _, c := range node.Children {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ")
}

// options gives the command its options, and says what it does not take.
func (a *arranger) options() {
	flags := map[string]*kong.Flag{}
	for _, group := range a.line.Node.AllFlags(false) {
		for _, f := range group {
			flags[f.Name] = f
		}
	}
	groups := map[string]string{}
	for _, g := range a.given {
		f := flags[g.option.name]
		switch {
		case f == nil && len(a.words) == 0:
			a.fault("option --%s needs a command", g.option.name)
			continue
		case f == nil:
			a.line.Warnings = append(a.line.Warnings, fmt.Sprintf("option --%s is not for %q and is ignored", g.option.name, strings.Join(a.words, " ")))
			continue
		case f.Tag.Has("noeffect"):
			a.line.Warnings = append(a.line.Warnings, fmt.Sprintf("option --%s has no effect: %s", f.Name, f.Tag.Get("noeffect")))
			continue
		}
		for _, x := range f.Xor {
			if other := groups[x]; other != "" && other != f.Name {
				a.fault("options --%s and --%s exclude each other", other, f.Name)
			}
			groups[x] = f.Name
		}
		if problem := checkValue(f, g.value); problem != "" {
			a.fault("option --%s: %s", f.Name, problem)
			continue
		}
		arg := "--" + f.Name
		if g.value != nil {
			arg += "=" + *g.value
		}
		a.flags = append(a.flags, arg)
	}
}

// checkValue tries a value on a copy of where kong will put it.
func checkValue(f *kong.Flag, value *string) string {
	if value == nil {
		return ""
	}
	scan := kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: *value})
	if err := f.Mapper.Decode(&kong.DecodeContext{Value: f.Value, Scan: scan}, reflect.New(f.Target.Type()).Elem()); err != nil {
		if k := f.Target.Kind(); k == reflect.Int || k == reflect.Int32 || k == reflect.Slice {
			return fmt.Sprintf("%q is not a whole number", *value)
		}
		return err.Error()
	}
	if list := f.Tag.Get("oneof"); list != "" && !oneOf(list, *value) {
		return fmt.Sprintf("%q is none of %s", *value, strings.ReplaceAll(list, ",", ", "))
	}
	if n, err := strconv.Atoi(*value); err == nil {
		for _, limit := range []string{"min", "max"} {
			m, err := strconv.Atoi(f.Tag.Get(limit))
			if err == nil && (limit == "min" && n < m || limit == "max" && n > m) {
				return fmt.Sprintf("%d is out of range, %simum is %d", n, limit, m)
			}
		}
	}
	return ""
}

// OptionalInt is the value of an option that may stand without one, as --wait[=N].
type OptionalInt struct {
	Given bool
	N     *int // nil: none
}

// IsBool makes kong take no separate argument for it.
func (o *OptionalInt) IsBool() bool { return true }

// Decode reads the value where one stands after the "=".
func (o *OptionalInt) Decode(ctx *kong.DecodeContext) error {
	o.Given, o.N = true, nil
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return nil
	}
	text := ctx.Scan.Pop().String()
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a number of seconds", text)
	}
	o.N = &n
	return nil
}

func oneOf(list, value string) bool { return slices.Contains(strings.Split(list, ","), value) }
