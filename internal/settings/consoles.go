package settings

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/pgrepmgr/repmgr/conninfo"
)

// PgBouncer is one of a list: a conninfo of its console, and the file with its databases where the list names it.
type PgBouncer struct{ Conninfo, File string }

// At is where its console listens.
func (p PgBouncer) At() string {
	params, _ := conninfo.Parse(p.Conninfo)
	return net.JoinHostPort(cmp.Or(params["host"], params["hostaddr"]), cmp.Or(params["port"], "5432"))
}

// ParsePgBouncers reads a list of conninfos that is joined by commas. Each may have the word file=, which is none of libpq.
func ParsePgBouncers(s string) (all []PgBouncer, problem string) {
	list, seen := conninfo.List(s), map[string]int{}
	for i, text := range list {
		which := ""
		if len(list) > 1 {
			which = fmt.Sprintf("is a list of %d, and number %d ", len(list), i+1)
		}
		params, err := conninfo.Parse(text)
		if err != nil && len(list) > 1 {
			return nil, fmt.Sprintf("%s%s: join conninfos by commas, and put a value with a comma in quotes", which, err)
		} else if err != nil {
			return nil, err.Error()
		}
		p := PgBouncer{text, params["file"]}
		if twice := conninfo.Repeated(text); twice != "" {
			return nil, fmt.Sprintf("%shas %q twice: join the conninfos of several PgBouncers by commas", which, twice)
		}
		if _, own := params["file"]; own {
			delete(params, "file")
			p.Conninfo = conninfo.Format(params)
			if !filepath.IsAbs(p.File) {
				return nil, which + "has a file that is no absolute path, such as file=/etc/pgbouncer/databases.ini"
			}
		}
		if problem := conninfo.Check(p.Conninfo); problem != "" {
			return nil, which + problem
		}
		if first := seen[p.At()]; first > 0 {
			return nil, fmt.Sprintf("%sleads to %s, as number %d does: give each PgBouncer a port of its own, or name the directory of its own socket as the host", which, p.At(), first)
		}
		seen[p.At()] = i + 1
		all = append(all, p)
	}
	return all, ""
}

// EachHasFile reports whether every PgBouncer of a list has a file: one of its own, or the one of all others.
func EachHasFile(list, file string) bool {
	all, _ := ParsePgBouncers(list)
	for _, p := range all {
		if p.File == "" && file == "" {
			return false
		}
	}
	return len(all) > 0 || file == ""
}

// PgBouncers is a key of a list of them.
func PgBouncers[T any](name string, at func(*T) *string) Key[T] {
	return secret(Checked(name, "", at, func(s string) string { _, problem := ParsePgBouncers(s); return problem }), at, redactPgBouncers)
}

// redactPgBouncers hides the passwords of a list. One that is wrong is taken for one conninfo: what looks like the next
// one may be the rest of a password.
func redactPgBouncers(s string) string {
	all, problem := ParsePgBouncers(s)
	if problem != "" {
		return conninfo.Redact(s)
	}
	shown := make([]string, len(all))
	for i, p := range all {
		if shown[i] = conninfo.Redact(p.Conninfo); p.File != "" {
			shown[i] += " " + conninfo.Format(map[string]string{"file": p.File})
		}
	}
	return strings.Join(shown, ", ")
}
