package health

import (
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Verdict is the answer to a question.
type Verdict struct {
	OK  bool
	Why string // why not; empty where OK
}

func yes() Verdict { return Verdict{OK: true} }

// No is a Verdict that says why.
func No(format string, args ...any) Verdict { return Verdict{Why: fmt.Sprintf(format, args...)} }

// turnLimit is how much longer than twice monitor_interval a turn of a Monitor may take: each thing
// that it waits for has a deadline.
const turnLimit = 15 * time.Second

// Lately reports whether what a Monitor does in each turn was done in one of the last ones. The zero time was never.
func (v View) Lately(t time.Time) bool {
	return !t.IsZero() && v.At.Sub(t) <= 2*v.Interval+turnLimit
}

// Alive says whether the Monitor itself works, whatever its server does.
func (v View) Alive() Verdict {
	if !v.Lately(v.LookedAt) {
		return No("this daemon has not completed a look at its server %s", v.since(v.LookedAt, "it was started"))
	}
	return yes()
}

// Running says whether the local server answers, as a primary or a standby.
func (v View) Running() Verdict {
	if v.NodeID == 0 {
		return No("this daemon has no node of its own")
	}
	if a := v.Alive(); !a.OK {
		return a
	}
	p, limit := v.self(), v.Silence
	if !v.Automatic { // it is looked at in each turn only
		limit += 2 * v.Interval
	}
	switch fresh := v.At.Sub(p.SeenAt) <= limit; {
	case p.SeenAt.IsZero():
		return No("the server of this node was not seen since this daemon was started")
	case p.Answer == election.NoSlots, p.Answer == election.Rejects: // it says itself that it is alive
		if v.At.Sub(p.Tried) > 2*limit {
			return No("the server of this node was not reached %s", v.since(p.Tried, "this daemon was started"))
		}
	case p.Answer != election.Answers && p.Answer != election.Silent:
		return No("the server of this node %s", p.Answer)
	case !fresh:
		return No("the server of this node has not answered %s", v.since(p.SeenAt, "this daemon was started"))
	}
	return yes()
}

// Primary says whether the local node is the primary, and will be until its lease ends.
func (v View) Primary() Verdict {
	if r := v.Running(); !r.OK {
		return r
	}
	switch {
	case v.Record().Role == registry.RoleWitness:
		return No("this node is a witness")
	case v.Runs() != election.Primary:
		return No("this node is a standby%s", v.inOffice())
	case v.Yields:
		return No("another repmgrd acts for this node: ask that one")
	case !v.Decides():
		return v.primaryByHand()
	}
	p := v.self()
	if by := p.Deposed(v.Peers); by.Known() {
		return No("%s was elected in term %d: this node is not the primary any more", v.Name(by.Primary), by.Term)
	}
	switch {
	case p.Rule.Primary == p.ID, p.Elected(p.Rule):
		return v.leased()
	case !v.Rule.Known():
		return No("no majority has made this node the primary yet")
	}
	return No("this node runs as a primary that nobody elected%s", v.inOffice())
}

// primaryByHand is Primary where an operator decides who is the primary.
func (v View) primaryByHand() Verdict {
	switch r, l := v.Record(), v.Lease; {
	case v.Automatic && l.Known && l.Needed && l.Left <= 0: // beside a daemon of repmgr 5
		return v.leased()
	case v.Rule.Known() && v.Rule.Primary != int32(v.NodeID):
		return No("this node runs as a primary%s", v.inOffice())
	case r.Role != registry.RolePrimary:
		return No("this node runs as a primary, and is not registered as one")
	}
	return yes()
}

// leased says whether the lease of an elected primary is in force.
func (v View) leased() Verdict {
	switch l := v.Lease; {
	case !l.Known:
		return No("the lease of this primary is not known: its daemon has not looked at the voters lately, or brings the server back")
	case !l.Needed:
		return yes()
	case l.Left <= 0:
		return No("the lease of this primary has run out: no majority of the voters answers")
	case !l.Proven:
		return No("this daemon has not reached a majority of the voters since it was started")
	}
	return yes()
}

// Standby says whether the local node is a standby that answers queries.
func (v View) Standby() Verdict {
	if r := v.Running(); !r.OK {
		return r
	}
	switch {
	case v.Record().Role == registry.RoleWitness:
		return No("this node is a witness")
	case v.Runs() != election.Standby:
		return No("this node runs as a primary")
	}
	return yes()
}

// CaughtUp is Standby for one that streams, and whose position is at most so many bytes behind its primary.
func (v View) CaughtUp(at wal.LSN, limit int64) Verdict {
	if s := v.Standby(); !s.OK {
		return s
	}
	if !v.Streams() {
		return No("this standby receives nothing%s", v.inOffice())
	}
	return v.Within(at, limit)
}

// Within says whether a position of the local standby is at most so many bytes behind what its primary had written
// when it was last seen.
func (v View) Within(at wal.LSN, limit int64) Verdict {
	lag, known := v.Lag(at)
	switch {
	case !known:
		return No("how far this standby is behind is not known: its primary was not seen since this daemon was started")
	case lag > limit:
		return No("this standby is %d bytes behind its primary, and may be %d", lag, limit)
	}
	return yes()
}

// inOffice names the primary of the newest rule, for the end of a sentence.
func (v View) inOffice() string {
	if v.Rule.Known() {
		return fmt.Sprintf("; %s is the primary of term %d", v.Name(v.Rule.Primary), v.Rule.Term)
	}
	return ""
}

// since says how long ago t was, or since what where it never was.
func (v View) since(t time.Time, start string) string {
	if t.IsZero() {
		return "since " + start
	}
	return fmt.Sprintf("for %s", v.At.Sub(t).Round(100*time.Millisecond))
}
