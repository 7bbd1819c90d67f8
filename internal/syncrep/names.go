package syncrep

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// syncNames is a parsed synchronous_standby_names.
type syncNames struct {
	any   bool // ANY, a quorum; otherwise FIRST, where the first ones of the list count
	count int
	names []string
}

var syncToken = regexp.MustCompile(`^[ \t\n\r\f\v]*("(?:[^"]|"")*"|[A-Za-z_\x{80}-\x{10FFFF}][\w$\x{80}-\x{10FFFF}]*|\d+|[(),*])`)

// parseSyncNames parses a value that is not empty. ok is false where PostgreSQL would reject
// it.
func parseSyncNames(text string) (s syncNames, ok bool) {
	var words []string
	for rest := strings.TrimRight(text, " \t\n\r\f\v"); rest != ""; {
		m := syncToken.FindStringSubmatch(rest)
		if m == nil {
			return s, false
		}
		words, rest = append(words, m[1]), rest[len(m[0]):]
	}
	s.count = 1
	if len(words) > 3 && words[len(words)-1] == ")" {
		method := strings.ToUpper(words[0])
		if method == "ANY" || method == "FIRST" {
			s.any, words = method == "ANY", words[1:]
		}
		var err error
		if s.count, err = strconv.Atoi(words[0]); err != nil || words[1] != "(" {
			return s, false
		}
		words = words[2 : len(words)-1]
	}
	for i, w := range words {
		if (w == ",") != (i%2 == 1) || w == "(" || w == ")" {
			return s, false
		}
		if i%2 == 0 {
			if strings.HasPrefix(w, `"`) {
				w = strings.ReplaceAll(w[1:len(w)-1], `""`, `"`)
			}
			s.names = append(s.names, w)
		}
	}
	return s, len(words)%2 == 1
}

// closedName is the name of node 0. Nothing streams under it, so a commit that waits for it is
// never acknowledged.
const closedName = "repmgr:term-not-open"

// unknownNodeID stands for a name in the setting that belongs to no registered node.
const unknownNodeID int32 = -2

// SettingOf is the meaning of a value of synchronous_standby_names. A value that this program
// would not write, such as *, FIRST or a plain list, has Acks -1: it is unknown for whom
// commits wait. PostgreSQL compares the names without regard to case.
func SettingOf(value string, recs []registry.Record) election.SyncSetting {
	if value == "" {
		return election.SyncSetting{}
	}
	s, ok := parseSyncNames(value)
	if !ok || !s.any {
		return election.SyncSetting{Acks: -1}
	}
	set := election.SyncSetting{Acks: s.count}
	for _, name := range s.names {
		id := unknownNodeID
		if name == "*" {
			return election.SyncSetting{Acks: -1}
		}
		for _, r := range recs {
			if strings.EqualFold(r.Name, name) {
				id = int32(r.ID)
				break
			}
		}
		if name == closedName {
			id = 0
		}
		set.Standbys = append(set.Standbys, id)
	}
	slices.Sort(set.Standbys)
	return set
}

// Value is the value of synchronous_standby_names for a setting. A name that PostgreSQL could
// confuse with another one is left out, so no acknowledgement of that node counts.
func Value(s election.SyncSetting, name func(id int32) string) string {
	if s.Acks <= 0 {
		return ""
	}
	var names []string
	for _, id := range s.Standbys {
		text := name(id)
		if id == 0 || !registry.ValidName.MatchString(text) {
			text = closedName
		}
		names = append(names, pgx.Identifier{text}.Sanitize())
	}
	return fmt.Sprintf("ANY %d (%s)", s.Acks, strings.Join(names, ", "))
}
