package follow

// Recovery is what a new standby gets in addition to its upstream. An empty field changes
// nothing.
type Recovery struct {
	RestoreCommand        string
	ArchiveCleanupCommand string
	MinApplyDelay         string // in PostgreSQL's form, such as "5min"
}

// AddTo adds these settings to those of a standby, and resets what the source of the copy has
// set for the end of recovery.
func (r Recovery) AddTo(set map[string]string) {
	for key, value := range map[string]string{"restore_command": r.RestoreCommand, "archive_cleanup_command": r.ArchiveCleanupCommand, "recovery_min_apply_delay": r.MinApplyDelay} {
		if value != "" {
			set[key] = value
		}
	}
	for _, key := range []string{"recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"} {
		set[key] = "" // a recovery target copied from the source would stop recovery half-way
	}
}
