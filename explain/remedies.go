package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
)

// refusalHints say what to do where an election is refused.
var refusalHints = map[election.Refusal]string{
	election.RefusedHealth:     "Nothing to do while the primary lives. To move it, run on the node that is to be the primary: repmgr standby switchover",
	election.RefusedPaused:     "Run repmgr service unpause, or repmgr cluster failover --force.",
	election.RefusedNoMajority: "Start more of the nodes, or their network. A witness (repmgr witness register) or an etcd gives another vote. If the others are lost for good, decide yourself: repmgr standby promote --force on the node that has most.",
	election.RefusedNoPledge:   "repmgr service status says what is wrong with each of them.",
	election.RefusedSync:       "A node that may hold acknowledged commits is missing: start it. To give up what only it has: repmgr standby promote --force.",
	election.RefusedNoneFit:    "repmgr service status --detail shows each node's priority, mode and daemon.",
	election.RefusedUnfenced:   "Make sure that its server is down. Then: repmgr cluster failover --force. Beforehand: run a repmgrd with failover=automatic that can stop its server, or use synchronous_mode=quorum.",
	election.RefusedLocation:   "If that location is lost, decide yourself: repmgr standby promote --force on the node of your choice.",
	election.RefusedTooMany:    "Find out why the primaries fail. Then: repmgr cluster failover --force, or raise failovers_per_hour.",
	election.RefusedUsurper:    "Stop its server, or start its repmgrd: see repmgr cluster show. To go on all the same: repmgr cluster failover --force",
	election.RefusedVisible:    "Look at the network between the nodes.",
	election.RefusedPledges:    "Another election may be going on. It is tried again.",
	election.RefusedLag:        "Start the primary again, if that can be done. To give up what only it has: repmgr cluster failover --force. With synchronous_mode=quorum there is no such choice to make.",
	election.RefusedForeign:    "Stop repmgrd of repmgr 5 on every node. Then: repmgr cluster failover. Or let repmgr 5 do it.",
	election.RefusedBehind:     "Start the node that has them, or raise its priority above 0.",
}

// insisted is used in place of a hint that names what the operator has already tried. A
// failover with force is refused only where the primary may still accept writes.
const insisted = "--force does not get around this: nobody can be sure that the primary accepts no more writes. Make sure of it: stop its server on its machine (pg_ctl stop -m immediate), or switch that machine off. Once nothing answers there the next attempt finds it lost."

// RefusalHint says what to do about a refusal. forced: the operator has used force already.
func RefusalHint(r election.Refusal, h election.Health, forced bool) string {
	help := refusalHints[r]
	if r == election.RefusedHealth {
		help = cmp.Or(healthHints[h], help)
	}
	if forced && strings.Contains(help, "cluster failover") {
		return insisted
	}
	return help
}

// healthHints say what to do where only the state of the primary prevents a failover.
var healthHints = map[election.Health]string{
	election.HealthUnknown:      "Start repmgrd with failover=automatic on the primary: it writes the first rule.",
	election.HealthNotAccepting: "It has primary_start_timeout until another one takes its place. At once: repmgr cluster failover --force",
	election.HealthShutDown:     "Start the primary. Or elect another one: repmgr cluster failover (it takes a shutdown for a loss). failover_on_shutdown=on would do so by itself.",
	election.HealthMoved:        "Look at repmgr cluster show: the node that the rule names and another one can not both be the primary.",
}

// livingHints say what to do about a primary that lives and should not be replaced.
var livingHints = map[election.Health]string{
	election.HealthRejects:      "Do not promote: look at pg_hba.conf on the primary, and at the password (.pgpass).",
	election.HealthNoSlots:      "Do not promote: end connections of the primary, or raise max_connections.",
	election.HealthNotAccepting: "Wait for it, and look at its log.",
	election.HealthReceived:     "Do not promote: others receive from it. Look at the network between here and the primary.",
	election.HealthDoubtful:     "Ask again in some seconds.",
}

// loginHint says how to make nodes count that reject a login. Empty: no node rejects it.
func loginHint(voters []Voter) string {
	to := map[string][]string{} // by user
	for _, v := range voters {
		if v.Answer == election.Rejects && v.ID != registry.NodeID(election.Arbiter) {
			to[v.Login] = append(to[v.Login], v.Name)
		}
	}
	if len(to) == 0 {
		return ""
	}
	var who []string
	for _, user := range slices.Sorted(maps.Keys(to)) {
		who = append(who, fmt.Sprintf("user %q log in to %s", user, strings.Join(to[user], ", ")))
	}
	return "Let " + strings.Join(who, ", and ") + ": pg_hba.conf there (then a reload), or the password that is used here (passfile, PGPASSWORD)."
}

// LetInFirst is the hint for a refusal. Where living nodes reject the login, it first says how
// to repair that; otherwise it is the text in otherwise.
func LetInFirst(r election.Refusal, left []Voter, otherwise string) string {
	login := loginHint(left)
	silent := slices.ContainsFunc(left, func(v Voter) bool { return v.Answer != election.Answers && v.Answer != election.Rejects })
	switch r {
	case election.RefusedNoMajority, election.RefusedPledges, election.RefusedSync, election.RefusedLocation, election.RefusedNoneFit:
	default:
		return otherwise
	}
	switch {
	case login == "":
		return otherwise
	case silent:
		return login + " " + otherwise
	}
	return login
}
