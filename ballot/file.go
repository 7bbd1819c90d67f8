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

// What is in the file of ALTER SYSTEM is read from the file itself. Neither
// current_setting, which lags behind it, nor pg_file_settings will do: with an
// error anywhere in the configuration that shows nothing of this file.

// ErrUnreadable: what a server was told to keep can not be read for certain.
var ErrUnreadable = errors.New("postgresql.auto.conf can not be read")

// ErrMissing is an [ErrUnreadable]: the file is not there.
var ErrMissing = fmt.Errorf("%w: it is not there", ErrUnreadable)

// ErrUnheeded: a server would not heed a new setting, so that a pledge could not stop its WAL receiver.
var ErrUnheeded = errors.New("new settings would have no effect")

const fileLines = `(SELECT coalesce(pg_catalog.string_agg(line, E'\n' ORDER BY n), '') FROM pg_catalog.regexp_split_to_table(
	pg_catalog.encode(pg_catalog.pg_read_binary_file('postgresql.auto.conf'), 'escape'), E'\n') WITH ORDINALITY AS f (line, n)`

// SettingsSQL is a scalar subquery for the settings of ours (repmgr.*) in the
// file, as [Settings] reads them. Where there is no file it is an error of the
// server's: a missing file is a forgotten vote, not none.
const SettingsSQL = fileLines + ` WHERE line ~* '^\s*repmgr\.')`

// FaultSQL is a scalar subquery for what keeps the server from heeding a new
// setting, NULL where nothing does. It costs the server ten times as much as SettingsSQL.
const FaultSQL = `(SELECT CASE WHEN pg_catalog.current_setting('allow_alter_system', true) = 'off' THEN 'allow_alter_system is off'
	WHEN NOT coalesce(pg_catalog.bool_or(applied), true) THEN 'its configuration file has an error: ' ||
		(pg_catalog.array_agg(pg_catalog.format('%s line %s: %s', sourcefile, sourceline, pg_catalog.concat_ws(' ', error, '"' || name || '"')) ORDER BY seqno) FILTER (WHERE error IS NOT NULL))[1]
	END FROM pg_catalog.pg_file_settings)`

// Settings reads what SettingsSQL returned, as PostgreSQL does: of several of one
// name the last one counts. It is strict: with a line that it does not
// understand, the error is an [ErrUnreadable].
func Settings(text string) (map[string]string, error) { return settings(text, unescape) }

// FileSettings is Settings for the text of the file itself, of a server that is down.
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

// Unreadable reports whether a question with SettingsSQL in it failed because of
// that: there is no such file, or it may not be read.
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

// unescape takes back what the server's encode(..., 'escape') did.
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

// parseLine reads a line of a configuration file. Its name is empty where the
// line sets nothing.
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

// latin1 has a letter for each byte, whatever encoding the file is in.
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
