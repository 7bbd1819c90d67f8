package conffile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The words of postgresql.conf, which repmgr.conf shares. A number may have the
// letters of a unit right behind it.
var (
	keyWord    = regexp.MustCompile(`^[A-Za-z_\x{80}-\x{10ffff}][A-Za-z_0-9\x{80}-\x{10ffff}]*(\.[A-Za-z_\x{80}-\x{10ffff}][A-Za-z_0-9\x{80}-\x{10ffff}]*)?`)
	bareWord   = regexp.MustCompile(`^[A-Za-z_\x{80}-\x{10ffff}][-A-Za-z_0-9\x{80}-\x{10ffff}._:/]*`)
	integer    = regexp.MustCompile(`^[+-]?(0x[0-9a-fA-F]+|[0-9]+)[a-zA-Z]*`)
	realNumber = regexp.MustCompile(`^[+-]?[0-9]*\.[0-9]*([eE][+-]?[0-9]+)?`)
)

// parseLine reads one line: a key, perhaps "=", a value, perhaps a comment.
// An empty line has no key. The problem names a column and nothing of the text,
// which may be a secret.
func parseLine(text string) (key, value, problem string) {
	rest := text
	skip := func(n int) { rest = strings.TrimLeft(rest[n:], " \t\r") }
	at := func(what string) string { return fmt.Sprintf("at column %d: %s", len(text)-len(rest)+1, what) }
	atEnd := func() bool { return rest == "" || rest[0] == '#' }

	skip(0)
	if atEnd() {
		return "", "", ""
	}
	key = longest(rest, keyWord)
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
		value = unquote(rest[1 : n-1])
		skip(n)
	default:
		if value = longest(rest, bareWord, integer, realNumber); value == "" {
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

var escapes = map[byte]byte{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unquote undoes the escapes of a quoted value: a doubled quote or \' for a
// quote, \b \f \n \r \t, and \ with up to three octal digits.
func unquote(s string) string {
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
			} else if e, ok := escapes[c]; ok {
				c = e
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Similar returns the known key that is at most two letters away from name, or "".
func Similar(name string, known []string) string {
	best, most := "", 3
	for _, k := range known {
		if d := editDistance(strings.ToLower(name), k); d < most {
			best, most = k, d
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
