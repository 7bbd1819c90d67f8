package registry

import (
	"fmt"
	"slices"
	"strconv"
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

// Record is a row of repmgr.nodes: what a node registered itself as. It says
// what should be; the server itself says what is.
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
		return r.Name // not a registered node: the server that a clone is made from
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
