package salvage

import (
	"encoding/json"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/wal"
)

// MarkOwnWAL notes, before crash recovery gives the server WAL of its own, behind which
// place that lies: see [ballot.OwnWAL]. It keeps what an earlier rejoin has noted, which
// is not less true.
func (s *Server) MarkOwnWAL(behind wal.Position) error {
	if _, noted, err := s.OwnWAL(behind.Timeline); err != nil || noted {
		return err
	}
	text, err := json.Marshal(behind)
	if err != nil {
		return err
	}
	return postmaster.SetAutoConf(s.Dir, map[string]string{ballot.OwnWAL: string(text)}, nil)
}

// OwnWAL is [OwnWAL] of a server that is down.
func (s *Server) OwnWAL(t wal.Timeline) (behind wal.LSN, noted bool, err error) {
	text, err := postmaster.ReadAutoConf(s.Dir)
	if err != nil {
		return 0, false, err
	}
	set, err := ballot.FileSettings(text)
	if err != nil {
		return 0, false, err
	}
	behind, noted = OwnWAL(set, t)
	return behind, noted, nil
}

// OwnWAL reports whether a server that is on timeline t has WAL of its own, by its
// settings, and where that begins at the earliest. A note that can not be read is one,
// of a place that is not known: 0.
func OwnWAL(set map[string]string, t wal.Timeline) (behind wal.LSN, noted bool) {
	text, there := set[ballot.OwnWAL]
	if !there {
		return 0, false
	}
	var p wal.Position
	if json.Unmarshal([]byte(text), &p) != nil {
		return 0, true
	}
	return p.LSN, p.Timeline == t
}
