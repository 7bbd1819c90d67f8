package settings

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePgBouncers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		list string
		want []PgBouncer
	}{
		"none":                {"", nil},
		"one":                 {"host=/run/postgresql port=6432 user=x", []PgBouncer{{"host=/run/postgresql port=6432 user=x", ""}}},
		"one with its file":   {"port=6432 file=/a.ini host=h", []PgBouncer{{"host=h port=6432", "/a.ini"}}},
		"several, one file":   {"port=1,port=2 , port=3,", []PgBouncer{{"port=1", ""}, {"port=2", ""}, {"port=3", ""}}},
		"several with files":  {"port=1 file=/a.ini, port=2, port=3 file='/c d.ini'", []PgBouncer{{"port=1", "/a.ini"}, {"port=2", ""}, {"port=3", "/c d.ini"}}},
		"a comma in quotes":   {"port=1 password='a,port=9', port=2", []PgBouncer{{"port=1 password='a,port=9'", ""}, {"port=2", ""}}},
		"a quote in quotes":   {`port=1 password='a\',b', port=2`, []PgBouncer{{`port=1 password='a\',b'`, ""}, {"port=2", ""}}},
		"a comma by itself":   {`port=1 password=a\,b, port=2`, []PgBouncer{{`port=1 password=a\,b`, ""}, {"port=2", ""}}},
		"URIs":                {"postgresql://x@h:1/, postgresql://x@h:2/?file=/a.ini", []PgBouncer{{"postgresql://x@h:1/", ""}, {"host=h port=2 user=x", "/a.ini"}}},
		"the directory is it": {"host=/run/1 port=6432, host=/run/2 port=6432", []PgBouncer{{"host=/run/1 port=6432", ""}, {"host=/run/2 port=6432", ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problem := ParsePgBouncers(c.list)
			require.Empty(t, problem)
			require.Equal(t, c.want, got)
		})
	}
	for list, want := range map[string]string{
		"port=1 user=x; port=2 user=x":           `has "port" twice: join the conninfos of several PgBouncers by commas`,
		"port=1 user=x port=2 user=x":            `has "port" twice: join the conninfos of several PgBouncers by commas`,
		"port=1, port=2 user=x user=y":           `is a list of 2, and number 2 has "user" twice: join the conninfos of several PgBouncers by commas`,
		"port=1 file=a.ini":                      `has a file that is no absolute path, such as file=/etc/pgbouncer/databases.ini`,
		"port=1 file=/a.ini, port=2 file=":       `is a list of 2, and number 2 has a file that is no absolute path, such as file=/etc/pgbouncer/databases.ini`,
		"host=a port=1, host=a port=1 file=/a":   `is a list of 2, and number 2 leads to a:1, as number 1 does: give each PgBouncer a port of its own, or name the directory of its own socket as the host`,
		"host=a port=1, prt=2":                   `is a list of 2, and number 2 holds an unknown connection parameter "prt"`,
		"host=a port=1 password=b,c user=x":      `is a list of 2, and number 2 is not a list of keyword=value pairs (at byte 1): join conninfos by commas, and put a value with a comma in quotes`,
		"/etc/pgbouncer/a.ini":                   `is not a list of keyword=value pairs (at byte 1)`,
		"port=1 files=/a.ini, port=2 fil=/b.ini": `is a list of 2, and number 1 holds an unknown connection parameter "files"`,
	} {
		_, problem := ParsePgBouncers(list)
		require.Equal(t, want, problem, list)
	}
}

// A list shows no password, also where it is wrong, and what looks like another conninfo may belong to one.
func TestRedactPgBouncers(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"port=1 password=x, port=2 password='y,z' file=/a.ini": "port=1 password=***, port=2 password=*** file=/a.ini",
		"postgresql://x:y@h:1/,port=2 file='/c d'":             "postgresql://x:***@h:1/, port=2 file='/c d'",
		"port=1 password=x,y user=z":                           "port=1 password=*** user=z",
		"postgresql://x:se,cret@h:1/":                          "postgresql://x:***@h:1/",
		"port=1 password=x,ret=y port=2":                       "port=1 password=*** port=2",
		"port=1 file=a password=x":                             "port=1 ***",
	} {
		require.Equal(t, want, redactPgBouncers(list), list)
	}
}

func TestEachHasFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		list, file string
		want       bool
	}{
		{"", "", true},
		{"", "/a", false},
		{"port=1", "", false},
		{"port=1", "/a", true},
		{"port=1 file=/b", "", true},
		{"port=1 file=/b, port=2", "", false},
		{"port=1 file=/b, port=2", "/a", true},
	} {
		require.Equal(t, c.want, EachHasFile(c.list, c.file), c)
	}
}

func TestBadSockets(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"":                    "",
		"/a, 192.0.2.1:9999":  "",
		"/a, 192.0.2.1":       "must be paths, such as /run/haproxy/admin.sock, or addresses and ports, such as 192.0.2.1:9999, joined by commas",
		"/a, h:9999, /b,/a":   "names /a twice",
		"h:9999 , /b, h:9999": "names h:9999 twice",
	} {
		require.Equal(t, want, BadSockets(list), list)
	}
}
