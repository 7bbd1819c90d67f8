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

// A WAL receiver names its sender as its own primary_conninfo does, which need not
// be the spelling of the registered conninfo: a name for an address, one host of
// several. Names are resolved beside, so that no look waits for a name server.

const (
	resolveEvery = 30 * time.Second // between two looks at a name
	resolveLimit = 5 * time.Second
)

// hosts are the addresses of names, as last resolved. The zero value is empty, and
// it is safe for concurrent use.
type hosts struct {
	mu    sync.Mutex
	known map[string]*resolved
}

type resolved struct {
	addrs []netip.Addr
	at    time.Time // when it was last asked for
}

// addresses are those of a host that are known now. Where they are not, or are
// old, it has them looked up by a goroutine that start begins.
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
				return // what was known may still be right
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

// endpoint is a place where a server listens, as a conninfo spells it.
type endpoint struct {
	host string
	port int
}

// endpoints are all places that a conninfo names. An empty host is the default socket.
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
		for _, list := range [][]string{names, literal} { // a receiver names the one; the other is where it is
			if i < len(list) && list[i] != "" {
				e.host = list[i]
				all = append(all, e)
			}
		}
	}
	return all
}

// nodeAt is the registered node at that address. 0 where it can not be told, or
// where it could be several.
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

// ofNodes is how many of these slots are those of registered nodes.
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

// fed are the registered nodes whose names a node's WAL senders show.
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
