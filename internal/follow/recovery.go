package follow

// Recovery is what a new standby is given beside its upstream. An empty field changes
// nothing.
type Recovery struct {
	RestoreCommand        string
	ArchiveCleanupCommand string
	MinApplyDelay         string // in PostgreSQL's form, such as "5min"
}

// AddTo adds its settings to those of a standby, and takes back what a source of the copy
// has said of the end of recovery.
func (r Recovery) AddTo(set map[string]string) {
	for key, value := range map[string]string{"restore_command": r.RestoreCommand, "archive_cleanup_command": r.ArchiveCleanupCommand, "recovery_min_apply_delay": r.MinApplyDelay} {
		if value != "" {
			set[key] = value
		}
	}
	for _, key := range []string{"recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"} {
		set[key] = "" // a leftover of the source would stop recovery half-way
	}
}
