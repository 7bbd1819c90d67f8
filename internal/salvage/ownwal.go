package salvage

import (
	"encoding/json"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/wal"
)

// MarkOwnWAL records, before a crash recovery that may write WAL which no other server has,
// behind which position that WAL lies: see [ballot.LocalWAL]. The mark of an earlier rejoin
// stays, because it is still true.
func (s *Server) MarkOwnWAL(behind wal.Position) error {
	if _, noted, err := s.OwnWAL(behind.Timeline); err != nil || noted {
		return err
	}
	text, err := json.Marshal(behind)
	if err != nil {
		return err
	}
	return postmaster.SetAutoConf(s.Dir, map[string]string{ballot.LocalWAL: string(text)}, nil)
}

// OwnWAL is the function [OwnWAL] for a server that is down.
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

// OwnWAL reports whether the settings of a server on timeline t say that it has WAL which no
// other server has, and where that WAL begins at the earliest. A mark that can not be parsed
// counts, with an unknown position: 0.
func OwnWAL(set map[string]string, t wal.Timeline) (behind wal.LSN, noted bool) {
	text, there := set[ballot.LocalWAL]
	if !there {
		return 0, false
	}
	var p wal.Position
	if json.Unmarshal([]byte(text), &p) != nil {
		return 0, true
	}
	return p.LSN, p.Timeline == t
}
