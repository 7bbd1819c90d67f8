package conffile

import (
	"strings"
	"testing"
)

func TestParseLine(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][2]string{
		"":                              {},
		" \t# a = b":                    {},
		"a=b":                           {"a", "b"},
		"  a   b # c":                   {"a", "b"},
		"a=b#c":                         {"a", "b"},
		"a'b'":                          {"a", "b"},
		"a = ''":                        {"a", ""},
		`a = 'it''s \'so\' \\ \t\101!'`: {"a", "it's 'so' \\ \tA!"},
		`a = '\q\1019'`:                 {"a", "qA9"},
		`a = '# = ='`:                   {"a", "# = ="},
		"a = 5min":                      {"a", "5min"},
		"a = -0x1F":                     {"a", "-0x1F"},
		"a = 1.5e3":                     {"a", "1.5e3"},
		"a = node-1.example.com:5/x":    {"a", "node-1.example.com:5/x"},
		"a.b = ж":                       {"a.b", "ж"},
		"Include 'x'":                   {"Include", "x"},
	} {
		key, value, problem := parseLine(line)
		if key != want[0] || value != want[1] || problem != "" {
			t.Errorf("%q is %q, %q, %q; want %q", line, key, value, problem, want)
		}
	}
	for line, want := range map[string]string{
		"= b":          "at column 1: expected a key",
		"1a = b":       "at column 1: expected a key",
		"a":            "at column 2: expected a value",
		"a = # b":      "at column 5: expected a value",
		"a = 'b":       "at column 5: the quoted value has no end",
		`a = 'b\'`:     "at column 5: the quoted value has no end",
		"a = 'b'''":    "", // a quote at the end
		"a = b c":      "at column 7: unexpected text after the value",
		"a = 'b' 'c'":  "at column 9: unexpected text after the value",
		"a = 10.0.0.1": "at column 9: unexpected text after the value",
		"a = /b":       "at column 5: expected a value, quoted unless it is a plain word or number",
		"a = %n":       "at column 5: expected a value, quoted unless it is a plain word or number",
		"a == b":       "at column 4: expected a value, quoted unless it is a plain word or number",
	} {
		if _, _, problem := parseLine(line); problem != want {
			t.Errorf("%q: got %q, want %q", line, problem, want)
		}
	}
}

// quoteConf writes a value as a file takes it.
func quoteConf(value string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`).Replace(value) + "'"
}

func FuzzParseLine(f *testing.F) {
	for _, s := range []string{"a = 'b' # c", `a '\001''x'`, "a=1.5e3", "a='", "\xff=\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, value, problem := parseLine(s)
		if problem == "" && key == "" && (value != "" || strings.Trim(s, " \t\r") != "" && !strings.HasPrefix(strings.TrimLeft(s, " \t\r"), "#")) {
			t.Fatalf("%q was ignored", s)
		}
		if strings.Contains(s, "\n") {
			return
		}
		key, value, problem = parseLine("k = " + quoteConf(s))
		if key != "k" || value != s || problem != "" {
			t.Fatalf("%s is %q, %q, %q; want %q", quoteConf(s), key, value, problem, s)
		}
	})
}
