package election

import (
	"slices"
	"time"
)

// Health is the verdict on the primary, as a text for people.
type Health string

const (
	HealthUnknown      Health = "there is no rule that names a primary"
	HealthAlive        Health = "primary answers"
	HealthNotAccepting Health = "primary is starting up, shutting down or recovering"
	HealthStuck        Health = "primary has been starting up, shutting down or recovering for longer than primary_start_timeout"
	HealthNoSlots      Health = "primary is out of connections"
	HealthRejects      Health = "primary rejects this login"
	HealthMoved        Health = "another node runs as primary"
	HealthReceived     Health = "primary is not reachable from here, but others receive from it"
	HealthDoubtful     Health = "primary is silent, but not yet for silence_timeout"
	HealthShutDown     Health = "primary was shut down in order"
	HealthDemoted      Health = "the former primary runs as a standby"
	HealthDead         Health = "primary is dead: its server ended our connection and refuses new ones, and nobody receives from it"
	HealthRefused      Health = "primary refuses connections, and nobody receives from it"
	HealthSilent       Health = "primary is silent, and nobody receives from it"
	HealthHangs        Health = "primary hangs, and nobody receives from it"
	HealthInterrupted  Health = "primary was replaced, and what promoted the next one left no record: a later election confirmed it"
	HealthHandedOver   Health = "primary handed over: it was a switchover"
)

// Lost reports whether the verdict justifies a failover.
func (h Health) Lost() bool {
	switch h {
	case HealthStuck, HealthDemoted, HealthDead, HealthRefused, HealthSilent, HealthHangs, HealthInterrupted:
		return true
	}
	return false
}

// Proven reports whether it is certain that the primary accepts no more writes. A refused
// connection alone is no proof, because a firewall may refuse in the place of the server.
// Nor is a former primary that runs as a standby, which may be about to be promoted until
// it has pledged.
func (h Health) Proven() bool { return h == HealthDead }

// Diagnose judges the primary of the rule from what is known of all voters. A loss needs
// two signals: our own attempt to reach it, and the WAL receivers of the standbys.
func (p Policy) Diagnose(now time.Time, r Rule, peers []Peer) Health {
	primary := find(peers, r.Primary)
	for _, o := range peers {
		if o.ID != r.Primary && o.data() && o.Answer == Answers && o.Running == Primary && now.Sub(o.SeenAt) < p.Silence && (!r.Known() || o.Elected(r)) {
			return HealthMoved
		}
	}
	switch {
	case !r.Known():
		return HealthUnknown
	case primary.Answer == Answers && primary.Running == Standby:
		return HealthDemoted
	case primary.Answer == Answers:
		return HealthAlive
	case primary.Answer == NotAccepting && p.stuck(now, r, peers):
		return HealthStuck
	case primary.Answer == NotAccepting:
		return HealthNotAccepting
	case primary.Answer == NoSlots:
		return HealthNoSlots
	case primary.Answer == Rejects:
		return HealthRejects
	case p.received(now, r, peers):
		return HealthReceived
	case primary.Answer == Refused && shutDown(r, peers) && !p.OnShutdown:
		return HealthShutDown
	case primary.Answer == Refused && primary.Ended:
		return HealthDead
	case primary.Answer == Refused:
		return HealthRefused
	case now.Sub(primary.silentSince()) < p.Silence, now.Sub(r.majoritySince(peers)) < p.Silence:
		return HealthDoubtful
	case primary.Answer == Hangs:
		return HealthHangs
	default:
		return HealthSilent
	}
}

// How long a primary may start up, shut down or recover, without primary_start_timeout.
// With quorum a failover loses nothing, so the time is shorter, unless a standby still
// receives: then the primary is in a clean shutdown, which may take long.
const (
	startLimit       = 300 * time.Second
	quorumStartLimit = 30 * time.Second
)

// stuck reports whether the primary has let nobody in for too long. The server says so
// itself, so no second signal is needed; but it is alive, and may accept writes later. With
// Forced there is no waiting.
func (p Policy) stuck(now time.Time, r Rule, peers []Peer) bool {
	limit := p.Start
	switch {
	case p.Forced:
		return true
	case limit < 0:
		return false
	case limit == 0 && r.Quorum && !p.received(now, r, peers):
		limit = quorumStartLimit
	case limit == 0:
		limit = startLimit
	}
	since := find(peers, r.Primary).Starting
	return !since.IsZero() && now.Sub(since) >= limit
}

// majoritySince is since when a majority of the voters answers; the zero time where none
// does. For a monitor that is cut off from most voters the silence of the primary is no evidence.
func (r Rule) majoritySince(peers []Peer) time.Time {
	peers = slices.DeleteFunc(slices.Clone(peers), func(o Peer) bool { return o.Answer != Answers })
	slices.SortFunc(peers, func(a, b Peer) int { return a.Since.Compare(b.Since) })
	var ids []int32
	for _, o := range peers {
		if ids = append(ids, o.ID); r.Majority(ids) {
			return o.Since
		}
	}
	return time.Time{}
}

// received reports whether any standby has recently heard from the primary. A running
// receiver alone is no evidence for that, because its sender may be silent. But where the
// primary refuses our connections, a stream that is still open means that it is alive;
// then only what was seen after the refusal counts.
func (p Policy) received(now time.Time, r Rule, peers []Peer) bool {
	primary := find(peers, r.Primary)
	refused := primary.Answer == Refused
	for _, o := range peers {
		if refused && o.SeenAt.Before(primary.Since) {
			continue
		}
		up := upstream(o, peers)
		if o.Answer == Answers && o.Streams && o.Running == Standby && (up == r.Primary || up == 0) &&
			(refused || now.Sub(o.SeenAt)+o.Heard < p.Silence) {
			return true
		}
	}
	return false
}

// upstream is the node that a standby streams from: the one whose address it uses, or else
// the only node that answers and lists it among its WAL senders. 0 means not known.
func upstream(o Peer, peers []Peer) int32 {
	if o.Receives != 0 {
		return o.Receives
	}
	var found []int32
	for _, u := range peers {
		if u.ID != o.ID && u.Answer == Answers && slices.Contains(u.Feeds, o.ID) {
			found = append(found, u.ID)
		}
	}
	if len(found) != 1 {
		return 0
	}
	return found[0]
}

// shutDown reports whether the WAL of the most advanced standby on the line of the rule ends
// with the checkpoint of a clean shutdown: then nothing was committed after it. Nodes on
// another branch do not count. Where several are equally advanced one of them is enough,
// because the others may have been seen shortly before they received that record. What ends where
// the line of the rule begins is the shutdown of an earlier primary, as in a switchover.
func shutDown(r Rule, peers []Peer) bool {
	var best Peer
	for _, o := range peers {
		if o.Answer != Answers || o.Running != Standby || !o.data() || o.PositionUnknown || o.ReplayBlocked == UnfitOwnWAL || !o.On(r) {
			continue
		}
		switch c := comparePosition(o.Position, best.Position); {
		case best.ID == 0 || c > 0:
			best = o
		case c == 0:
			best.ShutDown = best.ShutDown || o.ShutDown
		}
	}
	past := r.Line.Past
	return best.ShutDown && (len(past) == 0 || best.Position.LSN > past[len(past)-1].SwitchLSN)
}
