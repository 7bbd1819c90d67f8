// Package wal knows PostgreSQL's write-ahead log positions: log sequence
// numbers, timelines, timeline history files, and the one question that
// replication keeps asking of them: can this server follow that one?
//
// It is pure: no input, no output, no clock. It knows PostgreSQL, not repmgr.
package wal

import (
	"database/sql/driver"
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the write-ahead log, in bytes since the beginning of
// the cluster. The zero value means unknown ("0/0", PostgreSQL's own
// InvalidXLogRecPtr).
type LSN uint64

// Timeline numbers a branch of the write-ahead log. It grows by one or more at
// each promotion. The zero value means unknown.
type Timeline uint32

// ParseLSN reads PostgreSQL's text form, such as "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal numbers joined by a slash", s)
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", s, err)
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

// String returns PostgreSQL's text form.
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// Bytes returns how far l is ahead of from, in bytes. It is negative when l is
// behind, and 0 when either is unknown.
func (l LSN) Bytes(from LSN) int64 {
	if l == 0 || from == 0 {
		return 0
	}
	return int64(l - from)
}

// MarshalText makes LSN a string in JSON.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText writes; the empty text is unknown.
func (l *LSN) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*l = 0
		return nil
	}
	v, err := ParseLSN(string(b))
	if err == nil {
		*l = v
	}
	return err
}

// Scan reads a pg_lsn column; NULL is unknown.
func (l *LSN) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*l = 0
		return nil
	case string:
		return l.UnmarshalText([]byte(v))
	case []byte:
		return l.UnmarshalText(v)
	}
	return fmt.Errorf("scan LSN: unexpected %T", src)
}

// Value writes a pg_lsn parameter; unknown is NULL.
func (l LSN) Value() (driver.Value, error) {
	if l == 0 {
		return nil, nil
	}
	return l.String(), nil
}
