package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

func (completionCmd) needsConfig() bool { return false }

// Run writes a completion script, made from the grammar.
func (cmd *completionCmd) Run(a *app) error {
	script := map[string]func(io.Writer, []completion, *kong.Node){
		"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion,
	}[cmd.Shell]
	return a.write(func(w io.Writer) { script(w, completions(a.model.Node, ""), a.model.Node) })
}

// completion is what may follow some command words.
type completion struct {
	words   string // as typed so far, "standby"
	next    []word
	options []*kong.Flag
}

type word struct{ name, help string }

func completions(node *kong.Node, words string) []completion {
	c := completion{words: words}
	for _, group := range node.AllFlags(true) {
		c.options = append(c.options, group...)
	}
	for _, p := range node.Positional {
		for _, value := range strings.FieldsFunc(p.Tag.Get("oneof"), func(r rune) bool { return r == ',' }) {
			c.next = append(c.next, word{value, p.Help})
		}
	}
	var below []completion
	for _, child := range node.Children {
		if child.Hidden {
			continue
		}
		c.next = append(c.next, word{child.Name, child.Help})
		for _, name := range append([]string{child.Name}, child.Aliases...) {
			below = append(below, completions(child, strings.TrimSpace(words+" "+name))...)
		}
	}
	return append([]completion{c}, below...)
}

// valueOptions are the options whose value is the next word, in all spellings.
func valueOptions(node *kong.Node) []string {
	var out []string
	for _, n := range append([]*kong.Node{node}, node.Leaves(false)...) {
		for _, f := range n.Flags {
			if f.IsBool() {
				continue
			}
			for _, name := range append([]string{f.Name}, f.Aliases...) {
				out = append(out, "--"+name)
			}
			if f.Short != 0 {
				out = append(out, "-"+string(f.Short))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// choices are the values of a flag that takes only some, "text csv json".
func choices(f *kong.Flag) string { return strings.ReplaceAll(f.Tag.Get("oneof"), ",", " ") }

// bashValues has a line of a case for each option that takes only some values.
func bashValues(node *kong.Node) string {
	var lines []string
	for _, n := range append([]*kong.Node{node}, node.Leaves(true)...) {
		for _, f := range n.Flags {
			if choices(f) != "" {
				lines = append(lines, fmt.Sprintf("        --%s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", f.Name, choices(f)))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

func (c completion) names() string {
	var out []string
	for _, w := range c.next {
		out = append(out, w.name)
	}
	return strings.Join(out, " ")
}

func (c completion) optionNames() string {
	var out []string
	for _, f := range c.options {
		name := "--" + f.Name
		if !f.IsBool() {
			name += "="
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func bashCompletion(w io.Writer, all []completion, node *kong.Node) {
	fmt.Fprintf(w, `# bash completion for repmgr
_repmgr() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev="" path="" words="" options="" i word
    ((COMP_CWORD > 0)) && prev=${COMP_WORDS[COMP_CWORD-1]}
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            %s) ((i++)) ;;
            -*|=) ;;
            *) [[ ${COMP_WORDS[i-1]} == "=" ]] || path="${path:+$path }${word,,}" ;;
        esac
    done
    case $path in
`, strings.Join(valueOptions(node), "|"))
	for _, c := range all {
		fmt.Fprintf(w, "        %q) words=%q options=%q ;;\n", c.words, c.names(), c.optionNames())
	}
	fmt.Fprintf(w, `    esac
    # bash takes --option=value apart at the "=".
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" ]] && ((COMP_CWORD > 1)); then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case $prev in
        -f|--config-file|--config_file) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        -D|--data-dir|--pgdata|-b|--pg_bindir) COMPREPLY=($(compgen -d -- "$cur")); return ;;
%s    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    else
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}
complete -F _repmgr repmgr
`, bashValues(node))
}

// described is a list for zsh's _describe: 'name:explanation'.
func described(entries []word) string {
	var out []string
	for _, e := range entries {
		out = append(out, single(strings.ReplaceAll(e.name, ":", `\:`)+":"+oneLine(e.help)))
	}
	return strings.Join(out, " ")
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

func single(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func zshCompletion(w io.Writer, all []completion, node *kong.Node) {
	fmt.Fprintf(w, `#compdef repmgr
# zsh completion for repmgr
_repmgr() {
    local path_words="" i word
    local -a next options
    for ((i = 2; i < CURRENT; i++)); do
        word=${words[i]}
        case $word in
            %s) ((i++)) ;;
            -*) ;;
            *) path_words="${path_words:+$path_words }${word:l}" ;;
        esac
    done
    case $path_words in
`, strings.Join(valueOptions(node), "|"))
	for _, c := range all {
		var options []word
		for _, f := range c.options {
			options = append(options, word{"--" + f.Name, f.Help})
		}
		fmt.Fprintf(w, "        %s)\n            next=(%s)\n            options=(%s) ;;\n", single(c.words), described(c.next), described(options))
	}
	fmt.Fprint(w, `    esac
    case ${words[CURRENT-1]} in
        -f|--config-file|-D|--data-dir|--pgdata|-b|--pg_bindir) _files; return ;;
    esac
    if [[ ${words[CURRENT]} == -* ]]; then
        _describe -t options option options
    else
        _describe -t commands command next
    fi
}
if [[ ${funcstack[1]} == _repmgr ]]; then
    _repmgr "$@"
else
    compdef _repmgr repmgr
fi
`)
}

func fishCompletion(w io.Writer, all []completion, node *kong.Node) {
	fmt.Fprintf(w, `# fish completion for repmgr
function __repmgr_words
    set -l skip 0
    set -l found
    for word in (commandline -opc)[2..-1]
        if test $skip -eq 1
            set skip 0
            continue
        end
        switch $word
            case %s
                set skip 1
            case '-*'
            case '*'
                set -a found (string lower -- $word)
        end
    end
    test "$found" = "$argv[1]"
end
complete -c repmgr -f
`, strings.Join(valueOptions(node), " "))
	for _, c := range all {
		when := single("__repmgr_words " + `"` + c.words + `"`)
		for _, e := range c.next {
			fmt.Fprintf(w, "complete -c repmgr -n %s -a %s -d %s\n", when, e.name, single(oneLine(e.help)))
		}
		for _, f := range c.options {
			fmt.Fprintf(w, "complete -c repmgr -n %s -l %s", when, f.Name)
			if f.Short != 0 {
				fmt.Fprintf(w, " -s %s", single(string(f.Short)))
			}
			if !f.IsBool() {
				fmt.Fprint(w, " -r")
			}
			if values := choices(f); values != "" {
				fmt.Fprintf(w, " -f -a %s", single(values))
			}
			if f.PlaceHolder == "PATH" || f.PlaceHolder == "DIR" {
				fmt.Fprint(w, " -F")
			}
			fmt.Fprintf(w, " -d %s\n", single(oneLine(f.Help)))
		}
	}
}
