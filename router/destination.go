package router

import (
	"cmp"
	"fmt"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// Destination is where clients that write belong, as one daemon knows it.
type Destination struct {
	Primary registry.Record   // the zero value: no node is known to be the primary
	Others  []registry.Record // all other nodes
	Self    registry.Record   // the node of this daemon; the zero value: it has none
	Decided bool              // elections decide who the primary is
	Here    bool              // the primary is the node of this daemon
	Until   time.Time         // with Here: how long that is certain without further contact to the voters
	Gone    bool              // the node of this daemon is certainly not the primary
}

// aloneFor is how long this node is taken for the primary without a further look, where nobody else can be elected.
const aloneFor = 10 * time.Second

func destination(v health.View) Destination {
	id := v.Writer()
	d := Destination{Self: v.Record(), Decided: v.Decides(), Here: id != 0 && id == v.NodeID, Gone: v.Gone(), Until: v.At.Add(aloneFor)}
	if v.Lease.Needed {
		d.Until = v.At.Add(v.Lease.Left)
	}
	for _, r := range v.Records {
		if r.ID == id {
			d.Primary = r
		} else {
			d.Others = append(d.Others, r)
		}
	}
	return d
}

// same reports whether two destinations are one for all clients.
func (d Destination) same(o Destination) bool {
	return d.Primary.ID == o.Primary.ID && d.Primary.Conninfo == o.Primary.Conninfo && d.Here == o.Here
}

// at is where a node listens.
func at(r registry.Record) (host, port string, err error) {
	params, err := conninfo.Parse(r.Conninfo)
	if err != nil {
		return "", "", fmt.Errorf("the conninfo of %s: %w", r, err)
	}
	host = cmp.Or(params["hostaddr"], params["host"])
	if host == "" {
		return "", "", failure.WithHint(fmt.Errorf("the conninfo of %s names no host", r), "Set conninfo in its repmgr.conf, and register it again with --force.")
	}
	return host, cmp.Or(params["port"], "5432"), nil
}
