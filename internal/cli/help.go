package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// helpColumn is where the explanations begin.
const helpColumn = 36

// WriteHelp explains a command, a group of commands, or the whole program. The
// words are those of the grammar: help:"" of commands and options, group:"" of
// options, and what the Help method of a command adds, such as an example.
func WriteHelp(w io.Writer, app *kong.Application, node *kong.Node) {
	switch {
	case node.Leaf() && node.Parent != nil:
		fmt.Fprintf(w, "%s %s: %s\n\nUsage:\n  %s\n", app.Name, words(node), node.Help, usage(app, node))
		writeOptions(w, node.Flags)
		if node.Detail != "" {
			fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(node.Detail))
		}
		fmt.Fprintf(w, "\nOptions that every command takes: %s --help\n", app.Name)
	case node.Parent != nil:
		fmt.Fprintf(w, "%s\n\nUsage:\n  %s [OPTIONS] %s ACTION\n\nActions:\n", node.Help, app.Name, words(node))
		writeCommands(w, node)
		fmt.Fprintf(w, "\nOptions of an action: %s %s ACTION --help\n", app.Name, words(node))
	default:
		fmt.Fprintf(w, "%s: %s\n\nUsage:\n  %s\n", app.Name, app.Help, usage(app, node))
		others := false
		for _, group := range node.Children {
			switch {
			case group.Hidden:
				continue
			case group.Leaf() && others:
			case group.Leaf():
				others = true
				fmt.Fprint(w, "\nOther:\n")
			default:
				fmt.Fprintf(w, "\n%s:\n", group.Help)
			}
			writeCommands(w, group)
		}
		writeOptions(w, append(slices.Clone(app.Flags), shared(app.Node)...))
		if node.Detail != "" {
			fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(node.Detail))
		}
	}
}

// shared are the options of commands that belong to a named group, each once.
func shared(node *kong.Node) []*kong.Flag {
	var out []*kong.Flag
	for _, leaf := range node.Leaves(true) {
		for _, f := range leaf.Flags {
			known := slices.ContainsFunc(out, func(o *kong.Flag) bool { return o.Name == f.Name })
			if f.Group != nil && !known {
				out = append(out, f)
			}
		}
	}
	return out
}

func words(node *kong.Node) string {
	if node.Parent == nil || node.Parent.Parent == nil {
		return node.Name
	}
	return words(node.Parent) + " " + node.Name
}

func usage(app *kong.Application, node *kong.Node) string {
	if len(node.Children) > 0 {
		return app.Name + " [OPTIONS] COMMAND"
	}
	text := app.Name + " [OPTIONS]"
	if node.Parent != nil {
		text += " " + words(node)
	}
	for _, p := range node.Positional {
		text += " " + argument(p)
	}
	return text
}

func argument(p *kong.Positional) string {
	name := or(strings.ReplaceAll(p.Tag.Get("oneof"), ",", "|"), strings.ToUpper(p.Name))
	if !p.Required {
		name = "[" + name + "]"
	}
	return name
}

func writeCommands(w io.Writer, group *kong.Node) {
	leaves := group.Leaves(true)
	if group.Leaf() {
		leaves = []*kong.Node{group}
	}
	for _, leaf := range leaves {
		left := words(leaf)
		for _, p := range leaf.Positional {
			left += " " + argument(p)
		}
		entry(w, left, leaf.Help)
	}
}

// writeOptions lists options below the title of their group, in the order of
// the grammar.
func writeOptions(w io.Writer, flags []*kong.Flag) {
	title := func(f *kong.Flag) string {
		if f.Group == nil {
			return "Options"
		}
		return f.Group.Title
	}
	var titles []string
	for _, f := range flags {
		if !f.Hidden && !slices.Contains(titles, title(f)) {
			titles = append(titles, title(f))
		}
	}
	for _, t := range titles {
		fmt.Fprintf(w, "\n%s:\n", t)
		for _, f := range flags {
			if !f.Hidden && title(f) == t {
				entry(w, optionText(f), f.Help)
			}
		}
	}
}

func optionText(f *kong.Flag) string {
	text := "    --" + f.Name
	if f.Short != 0 {
		text = fmt.Sprintf("-%c, --%s", f.Short, f.Name)
	}
	switch place := or(f.PlaceHolder, strings.ToUpper(f.Name)); {
	case !f.IsBool():
		return text + "=" + place
	case f.PlaceHolder != "":
		return text + "[=" + place + "]"
	default:
		return text
	}
}

func entry(w io.Writer, left, help string) {
	lines := strings.Split(help, "\n")
	if len(left)+4 > helpColumn {
		fmt.Fprintf(w, "  %s\n", left)
		left = ""
	}
	for i, line := range lines {
		if i > 0 {
			left = ""
		}
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-*s%s", helpColumn-2, left, line), " "))
	}
}
