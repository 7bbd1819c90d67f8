// Package conninfo reads and writes the connection strings of libpq: keyword and value
// pairs, and URIs. It opens nothing, reads no file and no environment, and no error or
// result of [Redact] and [Check] shows a secret. A string that it can not read for certain
// is refused: two programs that read it differently would reach two servers.
package conninfo

import (
	"errors"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// masked stands in for every secret that would otherwise be shown.
const Masked = "***"

// keyword says what is to be known of a connection parameter of libpq.
type keyword struct {
	secret    bool // never shown
	libpqOnly bool // pgx would send it to the server, which refuses it
	file      bool // names a file that need not be here while the syntax is checked
}

// keywords are the keywords that libpq of PostgreSQL 13 to 18 knows.
var keywords = map[string]keyword{
	"host": {}, "hostaddr": {}, "port": {}, "user": {}, "dbname": {},
	"password": {secret: true}, "sslpassword": {secret: true},
	"passfile": {file: true}, "service": {file: true}, "servicefile": {file: true},
	"connect_timeout": {}, "client_encoding": {}, "options": {}, "replication": {},
	"application_name": {}, "fallback_application_name": {libpqOnly: true},
	"keepalives": {libpqOnly: true}, "keepalives_idle": {libpqOnly: true},
	"keepalives_interval": {libpqOnly: true}, "keepalives_count": {libpqOnly: true},
	"tcp_user_timeout": {libpqOnly: true},
	"sslmode":          {}, "sslnegotiation": {}, "sslsni": {}, "sslcertmode": {},
	"sslcert": {file: true}, "sslkey": {file: true}, "sslrootcert": {file: true},
	"sslcrl": {libpqOnly: true}, "sslcrldir": {libpqOnly: true}, "sslkeylogfile": {libpqOnly: true},
	"sslcompression": {libpqOnly: true}, "requiressl": {libpqOnly: true},
	"ssl_min_protocol_version": {libpqOnly: true}, "ssl_max_protocol_version": {libpqOnly: true},
	"min_protocol_version": {}, "max_protocol_version": {},
	"requirepeer": {libpqOnly: true}, "require_auth": {}, "channel_binding": {},
	"gssencmode": {libpqOnly: true}, "gsslib": {libpqOnly: true}, "gssdelegation": {libpqOnly: true},
	"krbsrvname": {}, "target_session_attrs": {}, "load_balance_hosts": {libpqOnly: true},
	"scram_client_key": {secret: true, libpqOnly: true}, "scram_server_key": {secret: true, libpqOnly: true},
	"oauth_issuer": {libpqOnly: true}, "oauth_client_id": {libpqOnly: true},
	"oauth_client_secret": {secret: true, libpqOnly: true}, "oauth_scope": {libpqOnly: true},
	"authtype": {libpqOnly: true}, "tty": {libpqOnly: true},
}

// Parse splits a connection string of either form of libpq, keyword and
// value pairs or a URI, into its parameters. Of a repeated keyword the last
// counts. It knows libpq's quoting, and not which keywords exist.
//
// A URI in which a character is used raw that libpq and others read differently
// (a second "@", a "#") is refused: it has to be written as %40, %23.
// No error quotes anything of the string.
func Parse(conninfo string) (map[string]string, error) {
	pairs, err := scan(conninfo)
	if err != nil {
		return nil, err
	}
	params := make(map[string]string, len(pairs))
	for _, p := range pairs {
		params[p.key] = p.value
	}
	return params, nil
}

// List splits a list of connection strings that is joined by commas. A comma that belongs to a value is in quotes.
func List(s string) (all []string) {
	begin, quoted, last := 0, false, byte(0) // last: the last byte that is no space
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s), s[i] == ',' && !quoted:
			if part := strings.Trim(s[begin:i], spaces); part != "" {
				all = append(all, part)
			}
			begin, quoted = i+1, false
		case s[i] == '\\':
			i++ // what follows stands for itself
		case s[i] == '\'':
			quoted = !quoted && last == '='
		}
		if i < len(s) && strings.IndexByte(spaces, s[i]) < 0 {
			last = s[i]
		}
	}
	return all
}

// Repeated is the first keyword that a connection string has twice; empty: there is none.
func Repeated(conninfo string) string {
	pairs, _ := scan(conninfo)
	for i, p := range pairs {
		if slices.ContainsFunc(pairs[:i], func(q pair) bool { return q.key == p.key }) {
			return p.key
		}
	}
	return ""
}

// Format writes parameters as keyword and value pairs: host, hostaddr,
// port, user and dbname first, then the others by name. It is the inverse of
// [Parse]. An empty value is written as ”.
func Format(params map[string]string) string {
	first := []string{"host", "hostaddr", "port", "user", "dbname"}
	keys := slices.SortedFunc(maps.Keys(params), func(a, b string) int {
		i, j := slices.Index(first, a), slices.Index(first, b)
		switch {
		case i >= 0 && j >= 0:
			return i - j
		case i >= 0:
			return -1
		case j >= 0:
			return 1
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	for _, key := range keys {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		value := params[key]
		if value == "" || strings.ContainsAny(value, `'\`+spaces) {
			value = "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
		}
		b.WriteString(key + "=" + value)
	}
	return b.String()
}

// Redact returns a connection string with each secret replaced by ***, and
// otherwise as it was written. What can not be read for certain is not shown at
// all: from the first thing that is not a known, well-formed parameter, the rest
// of the string is replaced.
func Redact(conninfo string) string {
	pairs, err := scan(conninfo)
	var b strings.Builder
	shown := 0
	for _, p := range pairs {
		known, ok := keywords[p.key]
		if !ok {
			return b.String() + conninfo[shown:p.at] + Masked
		}
		// libpq's clients take a dbname that looks like a connection string for one.
		if known.secret || p.key == "dbname" && strings.ContainsAny(p.value, "=:") {
			b.WriteString(conninfo[shown:p.start] + Masked)
			shown = p.end
		}
	}
	if err == nil {
		return b.String() + conninfo[shown:]
	}
	if n := uriPrefix(conninfo); n > 0 {
		return conninfo[:n] + Masked
	}
	if len(pairs) > 0 {
		b.WriteString(conninfo[shown:max(shown, pairs[len(pairs)-1].end)] + " ")
	}
	return b.String() + Masked
}

// Check returns what is wrong with a connection string, or "". The
// answer holds no secret.
func Check(conninfo string) string {
	pairs, err := scan(conninfo)
	if err != nil {
		return err.Error()
	}
	secret := false
	for _, p := range pairs {
		known, ok := keywords[p.key]
		switch {
		case !ok && secret: // it may be the rest of a password that was not quoted
			return "holds an unknown connection parameter after the password: a value with spaces must be quoted"
		case !ok:
			return fmt.Sprintf("holds an unknown connection parameter %q", p.key)
		}
		secret = secret || known.secret
	}
	params := pgxParams(pairs)
	maps.DeleteFunc(params, func(key, _ string) bool { return keywords[key].secret || keywords[key].file })
	if _, err := pgconn.ParseConfig(Format(params)); err != nil {
		text := err.Error()
		if _, after, ok := strings.Cut(text, "`: "); ok {
			text = after
		}
		return "is not a valid connection string: " + text
	}
	return ""
}

// ForPGX rewrites a connection string for pgx: pgx hands every keyword that
// it does not know to the server as a setting, which refuses the connection.
// Keywords that only libpq acts upon (keepalives, sslcrl, requirepeer and their
// like) are left out, and hostaddr takes the place of host. The string that the
// server's own WAL receiver gets must be the original.
func ForPGX(conninfo string) (string, error) {
	pairs, err := scan(conninfo)
	if err != nil {
		return "", err
	}
	return Format(pgxParams(pairs)), nil
}

func pgxParams(pairs []pair) map[string]string {
	params := make(map[string]string, len(pairs))
	for _, p := range pairs {
		params[p.key] = p.value
	}
	if addr := params["hostaddr"]; addr != "" {
		params["host"] = addr
	}
	delete(params, "hostaddr")
	if name := params["fallback_application_name"]; name != "" && params["application_name"] == "" {
		params["application_name"] = name
	}
	maps.DeleteFunc(params, func(key, _ string) bool { return keywords[key].libpqOnly })
	return params
}

// TargetSessionAttrs is as what a server must run for conninfo to lead to it. Empty: it does not say.
func TargetSessionAttrs(conninfo string) string {
	params, err := Parse(conninfo)
	if err != nil {
		return ""
	}
	return params["target_session_attrs"]
}

// IsSecret reports whether a parameter of that name is never shown.
func IsSecret(key string) bool { return keywords[key].secret }

// pair is a parameter of a connection string and where its text stands:
// from at, the value in [start, end).
type pair struct {
	key, value     string
	at, start, end int
}

const spaces = " \t\n\r\v\f"

// scan returns the parameters in the order of the text; with an error,
// those before the fault.
func scan(s string) ([]pair, error) {
	if strings.IndexByte(s, 0) >= 0 {
		return nil, errors.New("holds a NUL byte")
	}
	if n := uriPrefix(s); n > 0 {
		return scanURI(s, n)
	}
	return scanKeywords(s)
}

func scanKeywords(s string) ([]pair, error) {
	var pairs []pair
	skip := func(i int) int { return len(s) - len(strings.TrimLeft(s[i:], spaces)) }
	for i := skip(0); i < len(s); i = skip(i) {
		p := pair{at: i}
		if n := strings.IndexAny(s[i:], "="+spaces); n >= 0 {
			p.key, i = s[i:i+n], skip(i+n)
		} else {
			i = len(s)
		}
		if i >= len(s) || s[i] != '=' || p.key == "" {
			return pairs, fmt.Errorf("is not a list of keyword=value pairs (at byte %d)", p.at+1)
		}
		p.start = skip(i + 1)
		quoted := p.start < len(s) && s[p.start] == '\''
		var value strings.Builder
		i = p.start
		if quoted {
			i++
		}
		for ; i < len(s); i++ {
			if quoted && s[i] == '\'' || !quoted && strings.IndexByte(spaces, s[i]) >= 0 {
				break
			}
			if s[i] == '\\' {
				if i++; i == len(s) {
					return pairs, errors.New("ends in a backslash")
				}
			}
			value.WriteByte(s[i])
		}
		if quoted {
			if i == len(s) {
				return pairs, fmt.Errorf("holds a quoted value without an end (at byte %d)", p.start+1)
			}
			if i++; i < len(s) && strings.IndexByte(spaces, s[i]) < 0 {
				return pairs, fmt.Errorf("holds text right after a closing quote (at byte %d)", i+1)
			}
		}
		p.value, p.end = value.String(), i
		pairs = append(pairs, p)
	}
	return pairs, nil
}

// uriPrefix returns the length of the scheme of a connection URI, or 0.
func uriPrefix(s string) int {
	for _, scheme := range []string{"postgresql://", "postgres://"} {
		if strings.HasPrefix(s, scheme) {
			return len(scheme)
		}
	}
	return 0
}

// scanURI reads scheme://[user[:password]@][host[:port],...][/dbname][?key=value&...].
func scanURI(s string, start int) ([]pair, error) {
	rest := s[start:]
	if strings.Count(rest, "@") > 1 || strings.Count(rest, "?") > 1 || strings.ContainsAny(rest, "#"+spaces) {
		return nil, errors.New(`is not a valid URI: write "@", "?", "#" and spaces inside a part as %40, %3F, %23 and %20`)
	}
	main, query, hasQuery := strings.Cut(rest, "?")
	authority, dbname, _ := strings.Cut(main, "/")
	if strings.ContainsAny(main, "=&'\\") || strings.Contains(dbname+query, "@") {
		return nil, errors.New(`is not a valid URI: write "@", "/", "=" and "&" inside a part as %40, %2F, %3D and %26`)
	}
	var pairs []pair
	add := func(key, raw string, at int) error {
		value, err := unescapeURI(raw)
		if err == nil && raw != "" {
			pairs = append(pairs, pair{key, value, at, at, at + len(raw)})
		}
		return err
	}
	hosts := authority
	if user, after, ok := strings.Cut(authority, "@"); ok {
		hosts = after
		user, password, _ := strings.Cut(user, ":")
		if err := errors.Join(add("user", user, start), add("password", password, start+len(user)+1)); err != nil {
			return nil, err
		}
	}
	at := start + len(authority) - len(hosts)
	host, port, err := splitHosts(hosts)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(add("host", host, at), add("port", port, at), add("dbname", dbname, start+len(authority)+1)); err != nil {
		return nil, err
	}
	if !hasQuery || query == "" {
		return pairs, nil
	}
	at = start + len(main) + 1
	for param := range strings.SplitSeq(query, "&") {
		rawKey, raw, ok := strings.Cut(param, "=")
		key, err := unescapeURI(rawKey)
		if err != nil || !ok || key == "" || strings.ContainsAny(key, "="+spaces) || strings.Contains(raw, "=") {
			return nil, errors.New("is not a valid URI: its query is not a list of key=value joined by &")
		}
		value, err := unescapeURI(raw)
		if err != nil {
			return nil, err
		}
		if key == "ssl" && value == "true" { // as JDBC has it
			key, value = "sslmode", "require"
		}
		from := at + len(rawKey) + 1
		pairs = append(pairs, pair{key, value, at, from, from + len(raw)})
		at += len(param) + 1
	}
	return pairs, nil
}

// splitHosts takes host[:port],... apart into libpq's two lists.
func splitHosts(s string) (host, port string, err error) {
	var hosts, ports []string
	for item := range strings.SplitSeq(s, ",") {
		h, p, _ := strings.Cut(item, ":")
		if strings.HasPrefix(item, "[") {
			var after string
			var ok bool
			if h, after, ok = strings.Cut(item[1:], "]"); !ok || h == "" || after != "" && after[0] != ':' {
				return "", "", errors.New("is not a valid URI: an IPv6 address is not closed by ]")
			}
			p = strings.TrimPrefix(after, ":")
		}
		if n, err := strconv.ParseUint(p, 10, 16); p != "" && (err != nil || n == 0) {
			return "", "", errors.New("is not a valid URI: a port is not a number from 1 to 65535")
		}
		hosts, ports = append(hosts, h), append(ports, p)
	}
	host, port = strings.Join(hosts, ","), strings.Join(ports, ",")
	if strings.Trim(port, ",") == "" {
		port = ""
	}
	return host, port, nil
}

// unescapeURI decodes %XX. A plus sign is a plus sign.
func unescapeURI(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		n, err := strconv.ParseUint(s[i+1:min(i+3, len(s))], 16, 8)
		if err != nil || n == 0 || i+3 > len(s) {
			return "", errors.New(`is not a valid URI: "%" is not followed by two hexadecimal digits`)
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String(), nil
}

// User is the role that params log in as: the named one, else the OS user, as in libpq.
func User(params map[string]string) string {
	if params["user"] != "" {
		return params["user"]
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}
