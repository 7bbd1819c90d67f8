package repmgr

import (
	"fmt"
	"os"
)

// primaryConninfo is how a standby of that name reaches its upstream: the
// upstream's registered address, its replication role, and the name by which
// the upstream will know the standby. It holds a password only where the
// configuration asks for that.
func (c *Cluster) primaryConninfo(upstream Record, name string) (string, error) {
	params, err := ParseConninfo(upstream.Conninfo)
	if err != nil {
		return "", kind(ErrConfig, "conninfo of %s: %w", upstream, err)
	}
	for _, key := range []string{"dbname", "replication", "password", "options", "application_name", "fallback_application_name", "target_session_attrs"} {
		delete(params, key)
	}
	params["user"] = upstream.ReplicationUser
	if params["user"] == "" {
		delete(params, "user")
	}
	if name != "" {
		params["application_name"] = name[:min(len(name), 63)]
	}
	if c.cfg.Passfile != "" {
		params["passfile"] = c.cfg.Passfile
	}
	if c.cfg.UsePrimaryConninfoPassword {
		params["password"] = os.Getenv("PGPASSWORD")
		if ours, err := ParseConninfo(c.cfg.Conninfo); err == nil && params["password"] == "" {
			params["password"] = ours["password"]
		}
	}
	return FormatConninfo(params), nil
}

// standbySettings are the server settings that make a data directory a standby
// of upstream. An empty value is meant: it stands against one in postgresql.conf.
func (c *Cluster) standbySettings(upstream Record, name, slot string) (map[string]string, error) {
	conninfo, err := c.primaryConninfo(upstream, name)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"primary_conninfo":         conninfo,
		"primary_slot_name":        slot,
		"recovery_target_timeline": "latest",
	}, nil
}

// recoverySettings are the settings that only a new standby is given.
func (c *Cluster) recoverySettings(set map[string]string, minApplyDelay string) {
	if d := c.cfg.RecoveryMinApplyDelay; minApplyDelay == "" && d > 0 {
		minApplyDelay = fmt.Sprintf("%dms", d.Milliseconds())
	}
	for key, value := range map[string]string{"restore_command": c.cfg.RestoreCommand, "archive_cleanup_command": c.cfg.ArchiveCleanupCommand, "recovery_min_apply_delay": minApplyDelay} {
		if value != "" {
			set[key] = value
		}
	}
	for _, key := range []string{"recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"} {
		set[key] = "" // a leftover of the source would stop recovery half-way
	}
}
