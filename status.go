package repmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrepmgr/repmgr/wal"
)

// ClusterStatus is every registered node, as it is and as it should be.
type ClusterStatus struct {
	Nodes  []NodeView `json:"nodes"`
	Issues []string   `json:"issues"` // empty: all is well
}

// NodeView is a registered node with what was seen of it.
type NodeView struct {
	Record
	Reach    Reach        `json:"reach"`
	Running  Role         `json:"running,omitempty"`  // what it runs as; empty: unknown
	Status   string       `json:"status"`             // repmgr's cell with its marker: "* running", "  running", "! running as primary", "? unreachable", "- failed"
	Upstream string       `json:"upstream"`           // repmgr's cell: "node1", or with "? " unknown, "! " wrong
	Timeline wal.Timeline `json:"timeline,omitempty"` // 0: unknown
	Attached string       `json:"attached,omitempty"` // streaming, catchup, or empty: not attached, or unknown
	Error    string       `json:"error,omitempty"`    // why it could not be read
}

// Status looks at all registered nodes at once and holds what it sees against
// what is registered: on the primary where there is one, else in the local
// node's copy. It takes no longer than the slowest answer, and no longer than one
// connect_timeout.
func (c *Cluster) Status(ctx context.Context) (ClusterStatus, error) {
	probes, err := c.probeNodes(ctx)
	if err != nil {
		return ClusterStatus{}, err
	}
	return judge(probes), nil
}

// probeNodes looks at all nodes that the primary, or else the local node, has registered.
func (c *Cluster) probeNodes(ctx context.Context) ([]probe, error) {
	recs, err := c.Nodes(ctx)
	if errors.Is(err, ErrConnect) {
		return nil, hint(err, "%s To ask another node: repmgr -h HOST cluster show", Hint(err))
	}
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, hint(kind(ErrNotRegistered, "no node is registered"), "Run repmgr primary register on the primary first.")
	}
	probes := c.survey(ctx, recs)
	if found := primaries(probes); len(found) == 1 && len(found[0].records) > 0 {
		probes = c.newest(ctx, probes, found[0].records)
	}
	return probes, nil
}

// newest puts the primary's rows in the place of a copy that may lag behind.
// Only nodes that the copy had elsewhere, or not at all, are looked at now.
func (c *Cluster) newest(ctx context.Context, probes []probe, recs []Record) []probe {
	var missing []Record
	fresh := make([]probe, len(recs))
	for i, r := range recs {
		at := slices.IndexFunc(probes, func(p probe) bool { return p.record.ID == r.ID && p.record.Conninfo == r.Conninfo })
		if at < 0 {
			missing = append(missing, r)
			continue
		}
		fresh[i] = probes[at]
		fresh[i].record = r
	}
	for _, p := range c.survey(ctx, missing) {
		fresh[slices.IndexFunc(recs, func(r Record) bool { return r.ID == p.record.ID })] = p
	}
	return fresh
}

// judge holds what was seen against what is registered.
func judge(probes []probe) ClusterStatus {
	st := ClusterStatus{Nodes: []NodeView{}, Issues: []string{}}
	for _, p := range probes {
		v := NodeView{Record: p.record, Reach: p.reach()}
		v.Conninfo = Redact(v.Conninfo) // rows of a C repmgr may hold a password
		if p.err == nil {
			v.Running, v.Timeline = p.status.Role(), p.status.Timeline
			if p.record.Role == RoleWitness && !p.status.InRecovery {
				v.Running = RoleWitness
			}
			if p.record.Role == RoleWitness && p.status.InRecovery {
				st.Issues = append(st.Issues, fmt.Sprintf("%s is registered as witness but running as standby: it can keep no vote", p.record))
			}
			if p.status.ReplayPaused {
				st.Issues = append(st.Issues, fmt.Sprintf("WAL replay is paused on %s", p.record))
			}
		} else {
			v.Error = p.err.Error()
		}
		var issue string
		if v.Status, issue = statusCell(p); issue != "" {
			st.Issues = append(st.Issues, issue)
		}
		if v.Upstream, v.Attached, issue = upstreamCell(p, probes); issue != "" {
			st.Issues = append(st.Issues, issue)
		}
		st.Nodes = append(st.Nodes, v)
	}
	recs := make([]Record, len(probes))
	for i, p := range probes {
		recs[i] = p.record
	}
	for _, r := range recs {
		if up, ok := recordByID(recs, r.UpstreamID); ok {
			if err := checkLoop(recs, r.ID, up); err != nil {
				st.Issues = append(st.Issues, fmt.Sprintf("%s receives nothing: its upstreams are a circle", r))
			}
		}
	}
	st.Issues = append(st.Issues, namesakes(probes)...)
	if found := primaries(probes); len(found) > 1 {
		var names []string
		for _, p := range found {
			names = append(names, p.record.String())
		}
		st.Issues = append(st.Issues, fmt.Sprintf("%d nodes run as primary: %s", len(found), strings.Join(names, ", ")))
	}
	return st
}

// namesakes says under whose name more streams than one server.
func namesakes(probes []probe) (issues []string) {
	for _, up := range probes {
		for _, p := range probes {
			switch senders := sendersOf(up.status, p.record.Name); {
			case up.err != nil || len(senders) == 0:
			case len(senders) > 1:
				issues = append(issues, fmt.Sprintf("%d servers stream from %s under the name of %s, from %s: one of them is not that node, or its connection has just broken", len(senders), up.record, p.record, addressesOf(senders)))
			case p.err == nil && p.status.Receiver == nil:
				issues = append(issues, fmt.Sprintf("a server at %s streams from %s under the name of %s, which receives from nobody", addressesOf(senders), up.record, p.record))
			}
		}
	}
	return issues
}

// statusCell is the node's cell in the Status column, and what is wrong with it.
func statusCell(p probe) (cell, issue string) {
	r := p.record
	switch reach := p.reach(); {
	case reach == ReachOK && r.Role == RoleWitness, reach == ReachOK && r.Role == p.status.Role():
		mark := map[Role]string{RolePrimary: "* ", RoleWitness: "* ", RoleStandby: "  "}[r.Role]
		if !r.Active {
			return "! running", fmt.Sprintf("%s is running but registered as inactive", r)
		}
		return mark + "running", ""
	case reach == ReachOK:
		return "! running as " + string(p.status.Role()), fmt.Sprintf("%s is registered as %s but running as %s", r, r.Role, p.status.Role())
	case reach.Answers() && r.Role == RoleWitness && r.Active:
		return "? rejected", fmt.Sprintf("unable to connect to %s: %s", r, connectReason(p.err))
	case reach.Answers() && r.Role == RoleWitness:
		return "! failed", fmt.Sprintf("unable to connect to %s, registered as inactive: %s", r, connectReason(p.err))
	case reach.Answers() && r.Active:
		return "? running", fmt.Sprintf("unable to connect to %s: %s", r, connectReason(p.err))
	case reach.Answers():
		return "! running", fmt.Sprintf("%s is running but registered as inactive, and does not let us connect: %s", r, connectReason(p.err))
	case r.Active:
		return "? unreachable", fmt.Sprintf("unable to connect to %s: %s", r, connectReason(p.err))
	default:
		return "- failed", fmt.Sprintf("%s is registered as inactive and not reachable: %s", r, connectReason(p.err))
	}
}

// connectReason is the reason without the name of the node, which the issue has already.
func connectReason(err error) string {
	_, why, found := strings.Cut(err.Error(), "): ")
	if !found {
		return err.Error()
	}
	return why
}

// upstreamCell is the node's cell in the Upstream column: the registered
// upstream, marked where the servers tell otherwise.
func upstreamCell(p probe, probes []probe) (cell, attached, issue string) {
	r := p.record
	if r.Role == RolePrimary || r.UpstreamID == 0 {
		return "", "", ""
	}
	var up probe
	for _, q := range probes {
		if q.record.ID == r.UpstreamID {
			up = q
		}
	}
	switch {
	case r.Role == RoleWitness && p.err == nil:
		return r.UpstreamName, "", ""
	case r.Role == RoleWitness:
		return "? " + r.UpstreamName, "", ""
	case p.err == nil && up.err != nil && p.status.InRecovery && p.status.Receiver == nil:
		return "? " + r.UpstreamName, "", fmt.Sprintf("%s receives nothing: its upstream, %s, is not reachable", r, up.record)
	case p.err != nil || up.record.ID == 0 || up.err != nil:
		return "? " + r.UpstreamName, "", ""
	case !p.status.InRecovery:
		return "! " + r.UpstreamName, "", "" // the Status column says it
	}
	switch attached = attachment(up.status, r.Name); attached {
	case "streaming":
		return r.UpstreamName, attached, ""
	case "":
		for _, q := range probes {
			if q.err == nil && attachment(q.status, r.Name) != "" {
				return "! " + q.record.Name, attachment(q.status, r.Name),
					fmt.Sprintf("%s is attached to %s, not to its registered upstream %q (ID: %d)", r, q.record, r.UpstreamName, r.UpstreamID)
			}
		}
		return "! " + r.UpstreamName, "", fmt.Sprintf("%s is not attached to its upstream node %q (ID: %d)", r, r.UpstreamName, r.UpstreamID)
	default:
		return "? " + r.UpstreamName, attached, fmt.Sprintf("%s is attached to its upstream node %q (ID: %d), in state %q", r, r.UpstreamName, r.UpstreamID, attached)
	}
}
