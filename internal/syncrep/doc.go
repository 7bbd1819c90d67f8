// Package syncrep reads and writes synchronous_standby_names, and says whether commits
// really wait for a standby.
//
// The setting belongs to whoever wrote it: a mark beside it names the values that are ours,
// so a value of the user's is known as such, and is never taken away. A value that asks for
// more than what was in force is believed only after a commit was seen to wait for it:
// current_setting and pg_stat_replication may show the new value while the server still
// acknowledges commits without any standby. Where nothing can be proven, the setting from
// before is put back.
package syncrep
