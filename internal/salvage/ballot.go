package salvage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
)

// ReadBallot reads the vote from the settings of a server that is down, as strictly as
// that of one that runs: what it does not understand may be the vote. A directory
// without data and without that file holds none.
func ReadBallot(file string) (vote ballot.Ballot, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, errData := os.Stat(filepath.Join(filepath.Dir(file), "global", "pg_control")); errData != nil {
			return vote, nil
		}
		err = ballot.ErrMissing
	}
	var set map[string]string
	if err == nil {
		set, err = ballot.FileSettings(string(text))
	}
	if err == nil {
		vote, err = ballot.Parse(set[ballot.Setting])
	}
	if err != nil {
		return vote, failure.WithHint(fmt.Errorf("in %s: %w", file, err), "Put the file right: only ALTER SYSTEM may write it. It holds the node's vote, as %s = 'node_id/term/candidate'; what repmgrd has kept of that is in %s, beside it.", ballot.Setting, postmaster.NodesFile)
	}
	return vote, nil
}
