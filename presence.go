package repmgr

import "time"

// Presence is what a Monitor says of itself to everybody who can read its
// server: in the text of the last statement of a session that holds an advisory
// lock. It needs no table, so it works on a standby, and ends with the Monitor.
type Presence struct {
	PID       int          `json:"pid"`
	Mode      FailoverMode `json:"mode"`
	Phase     string       `json:"phase"`
	Reason    string       `json:"reason"`
	Since     time.Time    `json:"since"`
	SeenAt    time.Time    `json:"upstream_seen_at"` // when the primary was last seen, of a standby or witness; zero: never
	LeaseLeft *float64     `json:"lease_left"`       // of a primary with synchronous_mode=off: seconds until it would fence itself; nil: it needs no lease
	Error     string       `json:"last_error,omitempty"`
}
