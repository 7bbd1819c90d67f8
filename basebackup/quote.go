package basebackup

import (
	"errors"
	"fmt"
	"strings"
)

// The replication grammar has its own lexer: a literal stands in single quotes
// and an identifier in double ones, each doubled inside; a backslash is nothing
// special, and no other escape exists.

var errZeroByte = errors.New("contains a zero byte")

// quoteLiteral returns s as a string literal of a replication command.
func quoteLiteral(s string) (string, error) {
	if strings.IndexByte(s, 0) >= 0 {
		return "", errZeroByte
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'", nil
}

// quoteIdentifier returns s as a quoted identifier of a replication command.
func quoteIdentifier(s string) (string, error) {
	if strings.IndexByte(s, 0) >= 0 {
		return "", errZeroByte
	}
	if s == "" {
		return "", errors.New("is empty")
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`, nil
}

// checkSlotName holds a slot name to the server's own rule.
func checkSlotName(s string) error {
	if len(s) == 0 || len(s) > 63 {
		return fmt.Errorf("%q has %d characters, want 1 to 63", s, len(s))
	}
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789_", r) {
			return fmt.Errorf("%q has %q, want lower case letters, digits and underscores", s, r)
		}
	}
	return nil
}
