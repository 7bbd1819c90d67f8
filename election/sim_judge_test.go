package election_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr/election"
)

// judge watches from outside: who accepted and acknowledged what, and when. Of
// the nodes it knows only what an auditor finds on their disks.
type judge struct {
	w        *world
	broken   []string
	votes    map[int32]int64 // highest term that each node voted in
	winners  map[int64]int32 // who was promoted in each term
	acks     []ack           // quorum: all of them, in order; the last is the highest
	top      ack
	spans    []*span
	failover int
	excused  time.Duration // until when a process was stopped, missing, or back by itself
	apart    int           // overlaps that only those can explain
	lost     int
}

type ack struct {
	id    int64
	srv   int32
	lsn   int
	at    time.Duration
	run   *span
	reign int64
}

// span is the time in which one server accepted writes without a break.
type span struct {
	srv      int32
	from, to time.Duration
}

func (j *judge) break_(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.w.logf("BROKEN: %s", text)
	j.broken = append(j.broken, fmt.Sprintf("at %.3fs: ", j.w.now.Seconds())+text)
}

func (j *judge) voted(s *server, b ballotOf) {
	if b.term <= j.votes[s.h.id] {
		j.break_("node %d voted in term %d after term %d", s.h.id, b.term, j.votes[s.h.id])
	}
	j.votes[s.h.id] = max(b.term, j.votes[s.h.id])
}

func (j *judge) restarted(s *server) {
	if s.ballot.term < j.votes[s.h.id] {
		j.break_("the ballot of node %d went back from term %d to %d", s.h.id, j.votes[s.h.id], s.ballot.term)
	}
}

func (j *judge) promoted(s *server, term int64) {
	if other, ok := j.winners[term]; ok {
		j.break_("term %d has two winners: %d and %d", term, other, s.h.id)
	}
	j.winners[term] = s.h.id
	s.reign = max(s.reign, term)
	j.failover++
	if j.w.nodes == 2 && len(j.w.hosts) == 2 {
		other := j.w.hosts[2-s.h.id]
		if voted := other.s.ballot.term == term; other.id == s.h.id || !voted && (!other.s.up || !j.w.open(other, s.h) || !j.w.open(s.h, other)) {
			j.break_("node %d was promoted alone", s.h.id)
		}
	}
	if j.w.name == "paused" && j.w.healed == 0 {
		j.break_("node %d was promoted while failover is paused", s.h.id)
	}
}

func (j *judge) reaffirmed(s *server, term int64) {
	if other, ok := j.winners[term]; ok {
		j.break_("term %d has two winners: %d and %d", term, other, s.h.id)
	}
	j.winners[term] = s.h.id
	s.reign, s.rogue = max(s.reign, term), false
}

// displaced: a primary that may be one gives way to one of those that are pledged.
// One of them has what it does not have.
func (j *judge) displaced(s *server, pledged []election.Peer) {
	for _, p := range pledged {
		if other := j.w.host(p.ID).s; s.recovery || other.data() && (len(other.wal) > len(s.wal) || len(other.wal) > 0 && other.wal[len(other.wal)-1] != s.wal[len(other.wal)-1]) {
			return
		}
	}
	j.break_("node %d is fenced for another one, and nobody has more", s.h.id)
}

// returned: a server came back as a primary by itself.
func (j *judge) returned(*server) {
	if j.w.now > time.Second {
		j.excuse(0)
	}
}

func (j *judge) excuse(d time.Duration) { j.excused = max(j.excused, j.w.now+d) }

func (j *judge) acked(standby, primary *server) {
	if standby.bound > max(primary.reign, primary.ballot.term) { // a primary pledges itself to nobody but itself
		j.break_("node %d, pledged in term %d, acknowledged to node %d of term %d", standby.h.id, standby.bound, primary.h.id, primary.reign)
	}
}

// restored: WAL that a primary has archived reaches a standby. Nothing of an older
// term may, while the election goes on that it has pledged itself in.
func (j *judge) restored(s *server, a archived) {
	if s.bound > a.reign && !s.forgot {
		j.break_("node %d, pledged in term %d, takes WAL of term %d from the archive", s.h.id, s.bound, a.reign)
	}
}

// read is a look at the rows by a client: those that were acknowledged in an
// earlier term are there.
func (j *judge) read(s *server) {
	if j.w.quorum && !s.rogue && j.top.reign < s.reign && (len(s.wal) < j.top.lsn || j.top.lsn > 0 && s.wal[j.top.lsn-1].id != j.top.id) {
		j.break_("a read on node %d, the primary of term %d, lacks commit %d of term %d", s.h.id, s.reign, j.top.id, j.top.reign)
	}
}

func (j *judge) accepted(s *server) {
	if !j.w.mixed && (!s.rogue && !s.back || !s.h.manual && !s.h.unable) { // what nobody can stop is named
		j.wrote(s)
	}
}

func (j *judge) wrote(s *server) {
	if s.writing == nil {
		s.writing = &span{s.h.id, j.w.now, j.w.now}
		j.spans = append(j.spans, s.writing)
	}
	s.writing.to = j.w.now
}

func (j *judge) acknowledged(s *server, id int64) {
	if j.w.mixed { // who gets no acknowledgement need not be fenced
		j.wrote(s)
	}
	lsn := len(s.wal)
	for lsn > 0 && s.wal[lsn-1].id != id {
		lsn--
	}
	a := ack{id, s.h.id, lsn, j.w.now, s.writing, s.reign}
	if s.rogue || !s.promised() { // whoever writes to a server that nobody elected
		return
	}
	switch other := j.w.host(j.top.srv); {
	case !j.w.quorum || j.top.lsn == 0:
	case len(s.wal) >= j.top.lsn && s.wal[j.top.lsn-1].id == j.top.id:
	case len(other.s.wal) >= lsn && other.s.wal[lsn-1].id == id: // late, but the other one has it
		return
	default:
		j.break_("node %d acknowledges at %d without %d, acknowledged by node %d %v ago at %d", s.h.id, lsn, j.top.id, j.top.srv, j.w.now-j.top.at, j.top.lsn)
	}
	if lsn > j.top.lsn || j.top.srv != s.h.id {
		j.top = a
	}
	j.acks = append(j.acks, a)
}

// close judges the whole run. final is the primary in the end.
func (j *judge) close(final *server) {
	w := j.w
	have := map[int64]bool{}
	for _, r := range final.wal {
		have[r.id] = true
	}
	first, last := map[*span]time.Duration{}, map[*span]time.Duration{}
	for _, a := range j.acks {
		if have[a.id] {
			continue
		}
		j.lost++
		if w.quorum && j.lost == 1 {
			j.break_("lost: commit %d, acknowledged by node %d at %v", a.id, a.srv, a.at)
		}
		if _, ok := first[a.run]; !ok {
			first[a.run] = a.at
		}
		last[a.run] = a.at
	}
	if !w.quorum && len(w.plan) == 1 && j.excused == 0 {
		for run, at := range first {
			if d := last[run] - at; d > w.policy.Fence+1500*time.Millisecond {
				j.break_("node %d lost what it acknowledged in %v", run.srv, d)
			}
		}
	}
	j.overlaps()
}

// overlaps finds the times when two servers accepted writes. In quorum mode the
// one that is not the primary gets no acknowledgement, and it does not matter.
func (j *judge) overlaps() {
	if j.w.quorum {
		return
	}
	slices.SortFunc(j.spans, func(a, b *span) int { return int(a.from - b.from) })
	for i, a := range j.spans {
		for _, b := range j.spans[i+1:] {
			if a.srv == b.srv || b.from >= a.to {
				continue
			}
			from, to := b.from, min(a.to, b.to)
			switch {
			case j.w.strict > 0 && to > j.excused+j.w.strict:
				j.break_("nodes %d and %d both accepted writes from %v to %v, and nothing was stopped or missing since %v", a.srv, b.srv, from, to, j.excused)
			case j.excused == 0 || j.excused+j.w.policy.Fence < from-2*time.Second:
				j.break_("nodes %d and %d both accepted writes from %v to %v", a.srv, b.srv, from, to)
			case to > max(from, j.excused)+2*j.w.policy.Fence+2*time.Second:
				j.break_("nodes %d and %d both accepted writes from %v to %v, and nothing was stopped or missing since %v", a.srv, b.srv, from, to, j.excused)
			default:
				j.apart++
			}
		}
	}
}
