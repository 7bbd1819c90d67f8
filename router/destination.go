package router

import (
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
)

// Destination is where clients that write belong, as one daemon knows it.
type Destination struct {
	Primary registry.Record   // the zero value: no node is known to be the primary
	Others  []registry.Record // all other nodes
	Here    bool              // the primary is the node of this daemon
	Left    time.Duration     // with Here: how long that is certain without further contact to the voters
}

// destination is where the clients belong by what a Monitor knows.
func destination(v health.View) (d Destination) {
	id := v.Writer()
	d.Here, d.Left = id != 0 && id == v.NodeID, v.Lease.Left
	if d.Here && !v.Lease.Needed { // nobody else can be elected
		d.Left = 2*v.Interval + time.Minute
	}
	for _, r := range v.Records {
		if r.ID == id && id != 0 {
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

func (d Destination) name() string {
	if d.Primary.ID == 0 {
		return "none"
	}
	return d.Primary.Name
}

// at is where a node listens.
func at(r registry.Record) (host, port string) {
	params, err := conninfo.Parse(r.Conninfo)
	if err != nil {
		return "", ""
	}
	host, port = params["host"], params["port"]
	if host == "" {
		host = params["hostaddr"]
	}
	if port == "" {
		port = "5432"
	}
	return host, port
}
