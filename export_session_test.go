package repmgr

import (
	"maps"
	"slices"

	"github.com/pgrepmgr/repmgr/postgres"
)

// PinNames are the settings that go along when a session of ours is opened.
func PinNames() []string {
	parameters := map[string]string{}
	postgres.PinSession(parameters)
	return slices.Sorted(maps.Keys(parameters))
}
