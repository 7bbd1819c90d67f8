package salvage

import (
	"encoding/json"
	"fmt"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/wal"
)

// OwnWALSetting says, in the file of ALTER SYSTEM, that crash recovery has given a server
// that was to be rewound some WAL of its own, on which timeline, and behind which place.
// Others may have other WAL there: the end of this server's WAL tells nothing, and it can
// follow nobody until it has been rewound or cloned. The setting is made before that
// recovery and goes with the end of the rejoin; a promotion, which begins another
// timeline, makes it void.
const OwnWALSetting = "repmgr.own_wal"

// MarkOwnWAL keeps what an earlier rejoin has noted: it is not less true.
func (s *Server) MarkOwnWAL(behind wal.Position) error {
	if known, err := s.OwnWAL(); err != nil || known.Timeline == behind.Timeline {
		return err
	}
	text, err := json.Marshal(behind)
	if err != nil {
		return err
	}
	return postmaster.SetAutoConf(s.Dir, map[string]string{OwnWALSetting: string(text)}, nil)
}

// OwnWAL is what MarkOwnWAL has noted. Timeline 0: nothing.
func (s *Server) OwnWAL() (behind wal.Position, err error) {
	text, err := postmaster.ReadAutoConf(s.Dir)
	if err != nil {
		return behind, err
	}
	set, err := ballot.FileSettings(text)
	if err != nil {
		return behind, err
	}
	return ParseOwnWAL(set)
}

// ParseOwnWAL returns timeline 0 where there is no such WAL.
func ParseOwnWAL(set map[string]string) (behind wal.Position, err error) {
	text, there := set[OwnWALSetting]
	if !there {
		return behind, nil
	}
	if err := json.Unmarshal([]byte(text), &behind); err != nil {
		return behind, fmt.Errorf("parse %s %q: %w", OwnWALSetting, text, err)
	}
	return behind, nil
}
