package registry

import (
	"fmt"
	"regexp"
	"strings"
)

// MaxNameBytes is how long the name of a node may be: PostgreSQL cuts application_name there.
const MaxNameBytes = 63

// ValidName is what a node may be called: PostgreSQL matches the names of
// synchronous_standby_names without regard to case, takes * for everybody, and
// replaces what is not ASCII.
var ValidName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// NameProblem says what is wrong with the name of a registered node, and what to
// do about it. Empty: nothing.
func NameProblem(r Record, recs []Record) string {
	remedy := fmt.Sprintf("set another node_name in repmgr.conf of node ID %d, then run on it: repmgr %s register --force, and restart its repmgrd", r.ID, r.Role)
	if !ValidName.MatchString(r.Name) || len(r.Name) > MaxNameBytes {
		return fmt.Sprintf("node_name %q of node ID %d is not of letters, digits, '_', '.' and '-' (at most %d): with synchronous_mode=quorum no commit waits for it; %s", r.Name, r.ID, MaxNameBytes, remedy)
	}
	for _, o := range recs {
		if o.ID != r.ID && strings.EqualFold(o.Name, r.Name) {
			return fmt.Sprintf("node_name %q of node ID %d differs from %q of node ID %d at most in case, which PostgreSQL does not see: with synchronous_mode=quorum no commit waits for it; %s", r.Name, r.ID, o.Name, o.ID, remedy)
		}
	}
	return ""
}
