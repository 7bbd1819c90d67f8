package voters

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/registry"
)

// A WAL receiver names its sender as its own primary_conninfo does. That may differ from the
// registered conninfo: a host name instead of an address, or one host of several. Names are
// resolved in the background, so that no look waits for a name server.

const (
	resolveEvery = 30 * time.Second // the time between two lookups of a name
	resolveLimit = 5 * time.Second
)

// hosts are the addresses of host names, as they were last resolved. The zero value is ready to
// use. It is safe for concurrent use.
type hosts struct {
	mu    sync.Mutex
	known map[string]*resolved
}

type resolved struct {
	addrs []netip.Addr
	at    time.Time // when the lookup was last started
}

// addresses are the known addresses of a host. Where they are unknown or old, a lookup begins
// in a goroutine that start runs.
func (h *hosts) addresses(ctx context.Context, host string, start func(func())) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	if host == "" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") { // a socket
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = map[string]*resolved{}
	}
	r := h.known[host]
	if r == nil {
		r = &resolved{}
		h.known[host] = r
	}
	if now := time.Now(); now.Sub(r.at) > resolveEvery && ctx.Err() == nil {
		r.at = now
		start(func() {
			ctx, cancel := context.WithTimeout(ctx, resolveLimit)
			defer cancel()
			addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			if err != nil {
				return // the earlier addresses may still be right
			}
			for i := range addrs {
				addrs[i] = addrs[i].Unmap()
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			r.addrs = addrs
		})
	}
	return r.addrs
}

// endpoint is a place where a server listens, as written in a conninfo.
type endpoint struct {
	host string
	port int
}

// endpoints are all places that a conninfo names. An empty host means the default socket.
func endpoints(text string) (all []endpoint) {
	params, err := conninfo.Parse(text)
	if err != nil {
		return nil
	}
	names, ports := strings.Split(params["host"], ","), strings.Split(params["port"], ",")
	literal := strings.Split(params["hostaddr"], ",")
	for i := range max(len(names), len(literal)) {
		e := endpoint{port: 5432}
		if p := ports[min(i, len(ports)-1)]; p != "" {
			if e.port, err = strconv.Atoi(strings.TrimSpace(p)); err != nil {
				continue
			}
		}
		for _, list := range [][]string{names, literal} { // a receiver may show either of the two
			if i < len(list) && list[i] != "" {
				e.host = list[i]
				all = append(all, e)
			}
		}
	}
	return all
}

// nodeAt is the registered node at an address. 0 means that it is unknown or could be several
// nodes.
func (w *Watch) nodeAt(host string, port int) registry.NodeID {
	w.mu.Lock()
	recs := w.recs
	w.mu.Unlock()
	same := func(e endpoint) bool { return e.host == host }
	addrs := w.hosts.addresses(w.ctx, host, w.wg.Go)
	resolves := func(e endpoint) bool {
		return slices.ContainsFunc(w.hosts.addresses(w.ctx, e.host, w.wg.Go), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	}
	for _, match := range []func(endpoint) bool{same, resolves} {
		var found []registry.NodeID
		for _, r := range recs {
			if slices.ContainsFunc(endpoints(r.Conninfo), func(e endpoint) bool { return e.port == port && match(e) }) {
				found = append(found, r.ID)
			}
		}
		if len(found) == 1 {
			return found[0]
		}
	}
	return 0
}

// ofNodes is the number of slots among these that belong to registered nodes.
func (w *Watch) ofNodes(slots []string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.recs {
		if r.SlotName != "" && slices.Contains(slots, r.SlotName) {
			n++
		}
	}
	return n
}

// fed are the registered nodes among the names of a node's WAL senders.
func (w *Watch) fed(names []string) (ids []int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range names {
		if r, ok := registry.ByName(w.recs, name); ok {
			ids = append(ids, int32(r.ID))
		}
	}
	return ids
}
