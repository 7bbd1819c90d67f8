package rejoin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/salvage"
)

// What the server has and what is allowed settle how it comes back, or why it does not.
func TestDecide(t *testing.T) {
	t.Parallel()
	clean, rewind, clone := Options{}, Options{MayRewind: true}, Options{MayRewind: true, MayClone: true}
	server := &salvage.Server{Server: postmaster.Server{Dir: "/data"}}
	for name, c := range map[string]struct {
		options Options
		found   Work
		want    Method
		err     error
	}{
		"nothing of its own":                  {clean, Work{}, ByFollow, nil},
		"WAL of its own, to be kept":          {clean, Work{diverged: true}, "", failure.ErrTimelineDiverged},
		"WAL of its own":                      {rewind, Work{diverged: true}, ByRewind, nil},
		"pg_rewind can not help":              {rewind, Work{diverged: true, impossible: "a reason"}, "", failure.ErrRejoin},
		"pg_rewind can not, a clone may":      {clone, Work{diverged: true, impossible: "a reason"}, ByClone, nil},
		"pg_rewind never could":               {rewind, Work{diverged: true, impossible: "a reason", cloneOnly: true}, ByClone, nil},
		"pg_rewind never could, to be kept":   {clean, Work{diverged: true, impossible: "a reason", cloneOnly: true}, "", failure.ErrTimelineDiverged},
		"the primary lacks what comes next":   {rewind, Work{impossible: "a reason"}, "", failure.ErrRejoin},
		"the same, and a clone may":           {clone, Work{impossible: "a reason"}, ByClone, nil},
		"an earlier rejoin was interrupted":   {rewind, Work{interrupted: true}, ByClone, nil},
		"interrupted, and nothing is to come": {clean, Work{interrupted: true}, "", failure.ErrRejoin},
	} {
		w := c.found
		w.Options, w.Server = c.options, server
		w.Again = func(options string) string { return options }
		err := w.decide()
		require.ErrorIs(t, err, c.err, name)
		require.Equal(t, c.want, w.Method, name)
	}
}
