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

// voteIssue is the reason why the loss of the primary could not lead to a failover; empty: it
// could. others are the voters beside the primary, answering those of them that answer,
// candidates the number of standbys.
func voteIssue(r election.Rule, others, answering []int32, candidates int) string {
	have, all := r.Votes(answering)
	switch {
	case candidates == 0:
		return "can not fail over: there is no standby"
	case !r.Majority(others):
		return fmt.Sprintf("can not fail over by itself: %d votes, a majority is %d; add a witness (repmgr witness register) or etcd", all, all/2+1)
	case !r.Majority(answering):
		return fmt.Sprintf("can not fail over now: without the primary %d of %d votes answer, a majority is %d", have, all, all/2+1)
	default:
		return ""
	}
}
