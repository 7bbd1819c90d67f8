package ballot

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The settings are read from the file of ALTER SYSTEM itself. current_setting may still have
// an older value, and pg_file_settings shows nothing of this file while there is an error
// anywhere in the configuration.

// ErrUnreadable means that the stored settings can not be read with certainty.
var ErrUnreadable = errors.New("postgresql.auto.conf can not be read")

// ErrMissing is an [ErrUnreadable] that means that the file does not exist.
var ErrMissing = fmt.Errorf("%w: it is not there", ErrUnreadable)

// ErrUnheeded means that a new setting would have no effect on the server, so that a pledge
// could not stop its WAL receiver.
var ErrUnheeded = errors.New("new settings would have no effect")

const fileLines = `(SELECT coalesce(pg_catalog.string_agg(line, E'\n' ORDER BY n), '') FROM pg_catalog.regexp_split_to_table(
	pg_catalog.encode(pg_catalog.pg_read_binary_file('postgresql.auto.conf'), 'escape'), E'\n') WITH ORDINALITY AS f (line, n)`

// SettingsSQL is a scalar subquery for our settings (repmgr.*) in the file, in the form that
// [Settings] reads. Without the file the server reports an error, because a missing file
// means that a vote may have been lost, and not that there was none.
const SettingsSQL = fileLines + ` WHERE line ~* '^\s*repmgr\.')`

// FaultSQL is a scalar subquery for the reason why a new setting would have no effect on the
// server, NULL where it would have. It costs the server ten times as much as SettingsSQL.
const FaultSQL = `(SELECT CASE WHEN pg_catalog.current_setting('allow_alter_system', true) = 'off' THEN 'allow_alter_system is off'
	WHEN NOT coalesce(pg_catalog.bool_or(applied), true) THEN 'its configuration file has an error: ' ||
		(pg_catalog.array_agg(pg_catalog.format('%s line %s: %s', sourcefile, sourceline, pg_catalog.concat_ws(' ', error, '"' || name || '"')) ORDER BY seqno) FILTER (WHERE error IS NOT NULL))[1]
	END FROM pg_catalog.pg_file_settings)`

// Settings parses what SettingsSQL returned. As in PostgreSQL the last of several lines with
// the same name counts. A line that can not be parsed is an [ErrUnreadable].
func Settings(text string) (map[string]string, error) { return settings(text, unescape) }

// FileSettings is [Settings] for the text of the file itself, read from the disk of a server
// that is down.
func FileSettings(text string) (map[string]string, error) { return settings(text, strings.Clone) }

func settings(text string, unescape func(string) string) (map[string]string, error) {
	set := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		name, value, err := parseLine(unescape(line))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		if name != "" {
			set[strings.ToLower(name)] = value
		}
	}
	return set, nil
}

// ReadSettings reads all settings in the file of ALTER SYSTEM, which may hold a password.
func ReadSettings(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	var text string
	if err := conn.QueryRow(ctx, `SELECT `+fileLines+`)`).Scan(&text); err != nil {
		return nil, unreadable(err)
	}
	return Settings(text)
}

// Unreadable reports whether a query with SettingsSQL failed because the file does not exist
// or may not be read.
func Unreadable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "58") || pg.Code == "42501")
}

func unreadable(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "58P01" {
		return ErrMissing
	}
	if Unreadable(err) {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return err
}

// unescape is the inverse of the server's encode(..., 'escape').
func unescape(s string) string {
	return escaped.ReplaceAllStringFunc(s, func(e string) string {
		if e == `\\` {
			return `\`
		}
		return string([]byte{(e[1]-'0')<<6 | (e[2]-'0')<<3 | (e[3] - '0')})
	})
}

var (
	escaped = regexp.MustCompile(`\\\\|\\[0-3][0-7][0-7]`)
	// A line of a configuration file, by the rules of PostgreSQL's own reader.
	confLine = regexp.MustCompile(`^[ \t\r]*(?:(` + confID + `(?:\.` + confID + `)?)(?:[ \t\r]*=[ \t\r]*|[ \t\r]+)(` + confValue + `)[ \t\r]*)?(?:#.*)?$`)
	// The escapes in a quoted value.
	confEscape = regexp.MustCompile(`''|\\[0-7]{1,3}|\\.`)
)

const (
	confID    = `[A-Za-z_\x{80}-\x{ff}][A-Za-z_0-9\x{80}-\x{ff}]*`
	confValue = `'(?:[^'\\]|\\.|'')*'|[A-Za-z_\x{80}-\x{ff}][A-Za-z_0-9\x{80}-\x{ff}._:/-]*|[-+]?[0-9][0-9A-Za-z.+-]*`
)

// parseLine parses a line of a configuration file. The name is empty for a line that sets nothing.
func parseLine(line string) (name, value string, err error) {
	m := confLine.FindStringSubmatch(latin1(line))
	if m == nil {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=") // the rest may hold a password
		return "", "", fmt.Errorf("the line that begins with %.40q is none of a configuration file", strings.TrimSpace(name))
	}
	name, value = m[1], m[2]
	if strings.HasPrefix(value, "'") {
		value = confEscape.ReplaceAllStringFunc(value[1:len(value)-1], func(e string) string {
			if e == "''" {
				return "'"
			}
			if i := strings.IndexByte("bfnrt", e[1]); i >= 0 {
				return "\b\f\n\r\t"[i : i+1]
			}
			if e[1] < '0' || e[1] > '7' {
				return e[1:]
			}
			c := 0
			for _, d := range e[1:] {
				c = c<<3 | int(d-'0')
			}
			return string(rune(c & 0xff))
		})
	}
	return name, bytesOf(value), nil
}

// latin1 turns each byte into one rune, whatever encoding the file has.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

func bytesOf(latin string) string {
	var b []byte
	for _, r := range latin {
		b = append(b, byte(r))
	}
	return string(b)
}
