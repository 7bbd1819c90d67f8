package report

import (
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
)

// RuleText is a rule in one line. durability is the configured one; names are those of the
// registered nodes.
func RuleText(r election.Rule, durability string, names map[int32]string) string {
	name := func(id int32) string {
		if n, ok := names[id]; ok {
			return n
		}
		return fmt.Sprintf("node %d, which is not registered", id)
	}
	_, all := r.Votes(nil)
	text := fmt.Sprintf("term %d: primary %s; votes %d", r.Term, name(r.Primary), all)
	if have, _ := r.Votes([]int32{election.Arbiter}); have > 0 {
		text += fmt.Sprintf(", %d of them etcd's", have)
	}
	if durability != "" && r.Quorum {
		durability = fmt.Sprintf(" (durability %s)", durability)
	} else {
		durability = ""
	}
	if !r.Quorum || r.Acks == 0 {
		return text + "; commits wait for nobody" + durability
	}
	var sync []string
	for _, id := range r.Sync {
		sync = append(sync, name(id))
	}
	return text + fmt.Sprintf("; commits wait for %d of %s%s", r.Acks, strings.Join(sync, ", "), durability)
}
