package registry

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/internal/failure"
)

// SchemaVersion is the version of the metadata that this library writes.
const SchemaVersion = 2

// NodeID identifies a node for as long as the cluster lives. Valid ids are 1
// and more; the zero value means unknown, or none.
type NodeID int32

func (id NodeID) String() string { return strconv.Itoa(int(id)) }

// Role is what a node is registered as, or runs as. The zero value means unknown.
type Role string

const (
	RolePrimary Role = "primary"
	RoleStandby Role = "standby"
	RoleWitness Role = "witness"
)

// Record is a row of repmgr.nodes: how a node was registered. It is the intended state; only
// the server itself can tell the actual one.
type Record struct {
	ID              NodeID `json:"node_id" db:"node_id"`
	UpstreamID      NodeID `json:"upstream_node_id,omitempty" db:"upstream_node_id"` // 0: none
	UpstreamName    string `json:"upstream_node_name,omitempty" db:"upstream_node_name"`
	Active          bool   `json:"active" db:"active"`
	Name            string `json:"node_name" db:"node_name"`
	Role            Role   `json:"type" db:"type"`
	Location        string `json:"location" db:"location"`
	Priority        int    `json:"priority" db:"priority"`
	Conninfo        string `json:"conninfo" db:"conninfo"` // without a password
	ReplicationUser string `json:"repluser" db:"repluser"`
	SlotName        string `json:"slot_name,omitempty" db:"slot_name"` // empty: no slot
	ConfigFile      string `json:"config_file" db:"config_file"`
}

// String names the node as messages do.
func (r Record) String() string {
	if r.ID == 0 {
		return r.Name // not a registered node, but the source of a clone
	}
	return fmt.Sprintf("node %q (ID: %d)", r.Name, r.ID)
}

// ByID finds a node by its id.
func ByID(recs []Record, id NodeID) (Record, bool) {
	for _, r := range recs {
		if r.ID == id {
			return r, true
		}
	}
	return Record{}, false
}

// ByName finds a node by its name.
func ByName(recs []Record, name string) (Record, bool) {
	for _, r := range recs {
		if r.Name == name {
			return r, true
		}
	}
	return Record{}, false
}

// OthersThan leaves one node out.
func OthersThan(recs []Record, id NodeID) []Record {
	return slices.DeleteFunc(slices.Clone(recs), func(r Record) bool { return r.ID == id })
}

// SlotName is repmgr's name for the slot of a node; scripts split it at the underscores.
func SlotName(id NodeID) string { return fmt.Sprintf("repmgr_slot_%d", id) }

// HandoverSlot is the slot on a primary that keeps WAL for its successor while it hands over. One
// that is left there keeps WAL for nobody.
const HandoverSlot = "repmgr_handover"

// Primary is the node that is registered as the active primary.
func Primary(recs []Record) (Record, bool) {
	for _, r := range recs {
		if r.Role == RolePrimary && r.Active {
			return r, true
		}
	}
	return Record{}, false
}

// Unknown is the error about a node that is not registered, by its name where id is 0. It
// says which nodes there are.
func Unknown(recs []Record, id NodeID, name string) error {
	what := fmt.Sprintf("no node with ID %d is registered", id)
	if id == 0 {
		what = fmt.Sprintf("no node named %q is registered", name)
	}
	var known []string
	for _, r := range recs {
		known = append(known, fmt.Sprintf("%d (%s, %s)", r.ID, r.Name, r.Role))
	}
	return failure.WithHint(failure.Of(failure.ErrNotRegistered, "%s", what), "Registered nodes: %s", strings.Join(known, ", "))
}

// CheckLoop follows the registered upstreams from a node's upstream to the top.
// If they lead back to the node, nobody in that circle would ever receive anything.
func CheckLoop(recs []Record, node NodeID, upstream Record) error {
	chain := upstream.Name
	for steps, at := 0, upstream; steps <= len(recs); steps++ {
		if at.ID == node {
			return failure.WithHint(failure.Of(failure.ErrRefused, "that would be a circle of upstreams: %s", chain),
				"Follow the primary, or a standby that does not get its WAL from this node.")
		}
		next, ok := ByID(recs, at.UpstreamID)
		if !ok {
			return nil
		}
		chain += ", which follows " + next.Name
		at = next
	}
	return nil
}

// CheckTaken keeps a node from taking the id or the name of another one. With force it may
// replace the row of its own id.
func CheckTaken(recs []Record, rec Record, force bool) error {
	if old, ok := ByID(recs, rec.ID); ok && !force {
		return failure.WithHint(failure.Of(failure.ErrRegistered, "node ID %d is registered already, as %q (%s)", old.ID, old.Name, old.Role),
			"To update its row, use --force. If that is another node, choose another node_id.")
	}
	if other, ok := ByName(recs, rec.Name); ok && other.ID != rec.ID && other.Active {
		return failure.WithHint(failure.Of(failure.ErrRegistered, "the name %q is taken by node ID %d", rec.Name, other.ID), "Set another node_name in repmgr.conf.")
	}
	for _, other := range recs {
		if other.ID != rec.ID && other.Name != rec.Name && strings.EqualFold(other.Name, rec.Name) {
			return failure.WithHint(failure.Of(failure.ErrRegistered, "the name %q differs only in case from %q of node ID %d, which PostgreSQL does not see in synchronous_standby_names", rec.Name, other.Name, other.ID),
				"Set another node_name in repmgr.conf.")
		}
	}
	return nil
}
