package statefile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/registry"
)

// guarded are the settings in the file of ALTER SYSTEM that are changed but never removed in
// normal operation: what a standby streams by, how clients find the server, and what a clone
// set for good.
var (
	guarded = append([]string{"primary_conninfo", registry.PausedSetting}, ofStart...)
	ofStart = append(slices.Clone(ofPlace), "recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_timeline", "recovery_target_xid")
	ofPlace = []string{"port", "listen_addresses", "unix_socket_directories", "hba_file", "ident_file"}
)

// settings are the guarded settings that the file had last.
type settings struct {
	values      map[string]string
	readAtStart time.Time // the start time of the server from which they were read
}

// tellLost reports that settings have vanished from the file of ALTER SYSTEM. A running
// server goes on with what it had until it reads its configuration again, or starts.
func (s *settings) tellLost(d Daemon, set map[string]string, status registry.NodeStatus) {
	now, gone := map[string]string{}, map[string]string{}
	fresh := !s.readAtStart.Equal(status.StartedAt) // a rejoin writes the file again
	for _, name := range guarded {
		if value, ok := set[name]; ok {
			now[name] = value
		} else if value, ok := s.values[name]; ok && (!fresh || !slices.Contains(ofStart, name)) {
			gone[name] = value
		}
	}
	s.values, s.readAtStart = now, status.StartedAt
	if len(gone) == 0 {
		return
	}
	remedy := lostRemedy(gone, status.InRecovery)
	names := strings.Join(slices.DeleteFunc(slices.Clone(guarded), func(name string) bool { _, ok := gone[name]; return !ok }), ", ")
	text := fmt.Sprintf("%s gone from postgresql.auto.conf: somebody else wrote that file, or ran ALTER SYSTEM RESET", names)
	d.Log.Warn("settings of this node were lost", "settings", names, "hint", remedy)
	d.Tell(registry.Event{Type: registry.EventSettingsLost, Details: text + ". " + remedy})
}

// lostRemedy says what the loss of each setting means, and what to do about it.
func lostRemedy(gone map[string]string, standby bool) string {
	var all []string
	if _, ok := gone["primary_conninfo"]; ok && standby {
		all = append(all, "Without primary_conninfo a standby stops streaming when its server reads its configuration again. To set it anew: repmgr standby follow.")
	} else if ok {
		all = append(all, "This server is a primary: it needs no primary_conninfo, and is given one when it becomes a standby.")
	}
	if _, ok := gone[registry.PausedSetting]; ok {
		all = append(all, "If failover is still to be paused: repmgr service pause.")
	}
	for _, name := range ofPlace {
		if value, ok := gone[name]; ok {
			all = append(all, fmt.Sprintf("Unless postgresql.conf sets %s to the same value, the server has another one after its next start; before that: ALTER SYSTEM SET %s = '%s';", name, name, strings.ReplaceAll(value, "'", "''")))
		}
	}
	if slices.ContainsFunc(slices.Sorted(maps.Keys(gone)), func(name string) bool { return strings.HasPrefix(name, "recovery_target") }) {
		all = append(all, "pg_file_settings shows an error (cannot be changed without restarting the server) for each of recovery_target* until the next start: that does no harm.")
	}
	return strings.Join(all, " ")
}
