package conninfo

import (
	"maps"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		conninfo string
		want     map[string]string // nil: refused
	}{
		"empty":                     {"", map[string]string{}},
		"pairs":                     {"host=a  port=5432", map[string]string{"host": "a", "port": "5432"}},
		"spaces around the sign":    {" host = a\tuser =b ", map[string]string{"host": "a", "user": "b"}},
		"quotes":                    {`host='' password='it\'s \\ so' user=a\ b`, map[string]string{"host": "", "password": `it's \ so`, "user": "a b"}},
		"last of a repeated key":    {"host=a host=b", map[string]string{"host": "b"}},
		"a value is what follows =": {"password= host=a", map[string]string{"password": "host=a"}},
		"no value at the end":       {"host=", map[string]string{"host": ""}},
		"a word alone":              {"postgres", nil},
		"no end of a quote":         {"password='abc", nil},
		"text after a quote":        {"password='it's so'", nil},
		"a backslash at the end":    {`host=a\`, nil},
		"no key":                    {"=a", nil},
		"NUL":                       {"host=a\x00b", nil},

		"uri, all of it":        {"postgresql://u%40x:p%3Aw@h:1/db?sslmode=require&application_name=a%20b", map[string]string{"user": "u@x", "password": "p:w", "host": "h", "port": "1", "dbname": "db", "sslmode": "require", "application_name": "a b"}},
		"uri, nothing":          {"postgres://", map[string]string{}},
		"uri, hosts":            {"postgres://a:1,b,[::1]:3/", map[string]string{"host": "a,b,::1", "port": "1,,3"}},
		"uri, hosts, no port":   {"postgres://a,b", map[string]string{"host": "a,b"}},
		"uri, socket":           {"postgres://%2Ftmp/db", map[string]string{"host": "/tmp", "dbname": "db"}},
		"uri, JDBC's ssl":       {"postgres://h/?ssl=true", map[string]string{"host": "h", "sslmode": "require"}},
		"uri, password alone":   {"postgres://:pw@h", map[string]string{"password": "pw", "host": "h"}},
		"uri, plus":             {"postgres://u:a+b@h", map[string]string{"user": "u", "password": "a+b", "host": "h"}},
		"uri, colon":            {"postgres://u:a:b@h", map[string]string{"user": "u", "password": "a:b", "host": "h"}},
		"uri, raw @":            {"postgres://u:p@w@h", nil},
		"uri, raw slash":        {"postgres://u:p/w@h", nil},
		"uri, raw ?":            {"postgres://u:p?w@h/d?a=b", nil},
		"uri, raw #":            {"postgres://u:p#w@h", nil},
		"uri, bad escape":       {"postgres://u:p%zz@h", nil},
		"uri, cut escape":       {"postgres://h/d%2", nil},
		"uri, NUL":              {"postgres://h/%00", nil},
		"uri, port":             {"postgres://h:pw/d", nil},
		"uri, port 0":           {"postgres://h:0/d", nil},
		"uri, open bracket":     {"postgres://[::1/d", nil},
		"uri, query":            {"postgres://h/d?a", nil},
		"uri, query, two =":     {"postgres://h/d?a=b=c", nil},
		"uri, pairs by mistake": {"postgres://host=a password=b", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse(tc.conninfo)
			if (err == nil) != (tc.want != nil) || !maps.Equal(got, tc.want) {
				t.Fatalf("Parse(%q) = %v, %v; want %v", tc.conninfo, got, err, tc.want)
			}
			if tc.want != nil {
				again, err := Parse(Format(got))
				if err != nil || !maps.Equal(again, got) {
					t.Fatalf("Format = %q, which is %v, %v; want %v", Format(got), again, err, got)
				}
			}
		})
	}
}

func TestFormat_OrderAndQuotes(t *testing.T) {
	t.Parallel()
	got := Format(map[string]string{"sslmode": "require", "dbname": "d", "user": "a b", "application_name": `it's \`, "port": "1", "hostaddr": "", "host": "h"})
	want := `host=h hostaddr='' port=1 user='a b' dbname=d application_name='it\'s \\' sslmode=require`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for conninfo, want := range map[string]string{
		"":                                   "",
		"host=a user=b":                      "host=a user=b",
		"host=a  password=x  user=b":         "host=a  password=***  user=b",
		`password = 'a \' b' host=c`:         `password = *** host=c`,
		"password=a password=b sslpassword=": "password=*** password=*** sslpassword=***",
		"passfile=/p host=a":                 "passfile=/p host=a",
		"host=a password=my secret word":     "host=a password=*** ***",
		"host=a password='it's secret'":      "host=a ***",
		"password='a'b=c host=d":             "***",
		"password=a b=c host=d":              "password=*** ***",
		"PASSWORD=a":                         "***",
		"host=a pwd=x":                       "host=a ***",
		"dbname='password=x' host=a":         "dbname=*** host=a",
		"secret":                             "***",

		"postgres://u:p@h/d":                         "postgres://u:***@h/d",
		"postgresql://u:p%40@h:1,i:2/d?sslmode=a":    "postgresql://u:***@h:1,i:2/d?sslmode=a",
		"postgres://h/d?user=a&password=x&sslmode=b": "postgres://h/d?user=a&password=***&sslmode=b",
		"postgres://h/d?p%61ssword=x":                "postgres://h/d?p%61ssword=***",
		"postgres://u:p@x@h/d":                       "postgres://***",
		"postgres://u:p/x@h/d":                       "postgres://***",
		"postgres://u:p#x@h/d":                       "postgres://***",
		"postgres://h?password=se@cret":              "postgres://***",
		"postgres://u:p@h/d?pw=x":                    "postgres://u:***@h/d?***",
		"postgres://h/host=x%20password=y":           "postgres://***",
		"postgres://h/host%3Dx%20password%3Dy":       "postgres://h/***",
	} {
		if got := Redact(conninfo); got != want {
			t.Errorf("Redact(%q) = %q, want %q", conninfo, got, want)
		}
	}
}

func TestCheck_NamesTheFaultAndNoSecret(t *testing.T) {
	t.Parallel()
	for conninfo, want := range map[string]string{
		"host=a user=b dbname=c connect_timeout=5 keepalives_idle=1":     "",
		"host=a sslmode=verify-full sslrootcert=/absent sslcert=/absent": "",
		"postgres://u:p@a,b/d?target_session_attrs=any&sslcrl=/absent":   "",
		"host=a password='x y'":                                                 "",
		"host=a prot=5":                                                         `unknown connection parameter "prot"`,
		"host=a password=x hunter2=y":                                           "unknown connection parameter after the password",
		"host=a port=99999 password=hunter2":                                    "invalid port",
		"host=a password=hunter2 sslmode=hunted":                                "sslmode",
		"host=a connect_timeout=soon":                                           "connect_timeout",
		"host=a password=my hunter2":                                            "keyword=value",
		"postgres://u:hunter2@x@h/d":                                            "%40",
		"host=a,b,c port=1,2 password=hunter2":                                  "port numbers",
		"host=a password=hunter2 target_session_attrs=hunted":                   "target_session_attrs",
		"host=a password=hunter2 dbname='postgres://u:hunter2@x' replication=1": "",
	} {
		got := Check(conninfo)
		if (got == "") != (want == "") || !strings.Contains(got, want) || strings.Contains(got, "hunter2") {
			t.Errorf("Check(%q) = %q, want %q", conninfo, got, want)
		}
	}
}

func TestForPGX_LeavesOutWhatOnlyLibpqKnows(t *testing.T) {
	t.Parallel()
	got, err := ForPGX("host=a hostaddr=127.0.0.1 keepalives=1 tcp_user_timeout=5 fallback_application_name=x password='p w' options=-csearch_path=")
	want := "host=127.0.0.1 application_name=x options=-csearch_path= password='p w'"
	if err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func Fuzz_RoundTrip(f *testing.F) {
	f.Add("a", "b c", `it's \ so`)
	f.Add("", "\t", "=")
	f.Fuzz(func(t *testing.T, host, user, password string) {
		want := map[string]string{"host": host, "user": user, "password": password}
		text := Format(want)
		got, err := Parse(text)
		if strings.Contains(host+user+password, "\x00") {
			if err == nil {
				t.Fatal("a NUL byte was accepted")
			}
			return
		}
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("%q is %v, %v; want %v", text, got, err, want)
		}
	})
}

// What is shown of a string must not depend on the password in it.
func FuzzRedact_HidesThePassword(f *testing.F) {
	f.Add("host=a ", "hunter2", " user=b")
	f.Add("host=a ", `x' "y`, "")
	f.Add("postgres://h/d?x=", "a@b", "")
	f.Fuzz(func(t *testing.T, before, password, after string) {
		const marker = "S3cr3tMark"
		if strings.Contains(before+after, marker) {
			return
		}
		pairs := Format(map[string]string{"password": marker + password + marker, "user": "u", "sslpassword": marker})
		escaped := strings.Map(func(r rune) rune {
			if strings.ContainsRune("@/?#%&=: \t\n\r\v\f'\\\x00", r) {
				return '.'
			}
			return r
		}, password)
		for _, s := range []string{
			pairs, pairs + " " + after,
			"postgres://u:" + marker + escaped + "@h/d",
			"postgres://u:" + marker + password + "@h/d",
			"postgres://u:" + marker + password,
			"postgres://h/d?password=" + marker + password,
			"postgres://h/d?sslmode=require&sslpassword=" + marker + escaped + "&" + after,
			"host=h password=" + marker + password + marker + " " + after,
			"host=h password='" + marker + password + marker + "' " + after,
		} {
			got := Redact(s)
			if strings.Contains(got, marker) {
				t.Fatalf("Redact(%q) = %q", s, got)
			}
			if problem := Check(s); strings.Contains(problem, marker) {
				t.Fatalf("Check(%q) = %q", s, problem)
			}
		}
	})
}

// Whatever reads as a connection string keeps its other parameters, and loses its secrets.
func FuzzRedact_KeepsTheRest(f *testing.F) {
	f.Add("host=a password=b user=c")
	f.Add("postgres://u:p@h:1/d?sslmode=require&password=x")
	f.Fuzz(func(t *testing.T, s string) {
		got := Redact(s)
		if again := Redact(got); again != got && !strings.Contains(got, Masked) {
			t.Fatalf("Redact(%q) = %q, and again %q", s, got, again)
		}
		params, err := Parse(s)
		if err != nil {
			return
		}
		for key, value := range params {
			known, ok := keywords[key]
			if !ok || key == "dbname" && strings.ContainsAny(value, "=:") {
				return
			}
			if known.secret {
				params[key] = Masked
			}
		}
		shown, err := Parse(got)
		if err != nil || !maps.Equal(shown, params) {
			t.Fatalf("Redact(%q) = %q, which is %v, %v; want %v", s, got, shown, err, params)
		}
	})
}
