package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// HAProxy is one that is told over its runtime socket. Its servers bear the names of the nodes; others are
// left alone. Only the health of a server is set, which its health check corrects: a daemon that is wrong, or dies, does
// no lasting harm, and a server that an operator has put into maintenance stays there.
type HAProxy struct {
	Address string // a path, or host:port
	Backend string // the name of the backend, or listen section, for the primary
}

func (h *HAProxy) String() string { return "HAProxy at " + h.Address }

// Point makes the primary the only server of the backend, and ends the sessions of the others.
func (h *HAProxy) Point(ctx context.Context, d Destination) error {
	servers, err := h.servers(ctx)
	if err != nil {
		return err
	}
	has := func(r registry.Record) bool { return slices.Contains(servers, r.Name) }
	set := func(r registry.Record, state string) string {
		return fmt.Sprintf("set server %s/%s health %s", h.Backend, r.Name, state)
	}
	var down, up, cut []string
	for _, r := range d.Others {
		if has(r) {
			down, cut = append(down, set(r, "down")), append(cut, fmt.Sprintf("shutdown sessions server %s/%s", h.Backend, r.Name))
		}
	}
	if d.Primary.ID != 0 {
		if !has(d.Primary) {
			return failure.WithHint(fmt.Errorf("backend %q has no server %q, but %s", h.Backend, d.Primary.Name, strings.Join(servers, ", ")), "Name its servers as the nodes.")
		}
		up = []string{set(d.Primary, "up")}
	}
	all := slices.Concat(down, up, cut)
	if len(all) == 0 {
		return nil
	}
	said, err := h.ask(ctx, strings.Join(all, "; "))
	if said = strings.Join(strings.Fields(said), " "); err == nil && said != "" {
		err = fmt.Errorf("it says: %s", said)
		if strings.Contains(said, "denied") {
			err = failure.WithHint(err, "Give the socket \"level admin\" in haproxy.cfg.")
		}
	}
	return err
}

// servers are the names of the servers of the backend.
func (h *HAProxy) servers(ctx context.Context) (names []string, err error) {
	said, err := h.ask(ctx, "show servers state "+h.Backend)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if len(lines) < 2 || strings.TrimSpace(lines[0]) != "1" { // the version of the format
		return nil, fmt.Errorf("show servers state %s: %s", h.Backend, strings.TrimSpace(said))
	}
	column := slices.Index(strings.Fields(strings.TrimPrefix(lines[1], "#")), "srv_name")
	for _, line := range lines[2:] {
		if f := strings.Fields(line); column >= 0 && column < len(f) {
			names = append(names, f[column])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("backend %q has no servers", h.Backend)
	}
	return names, nil
}

const sayLimit = 1 << 20 // bytes of an answer

func (h *HAProxy) ask(ctx context.Context, commands string) (said string, err error) {
	kind := "tcp"
	if strings.HasPrefix(h.Address, "/") {
		kind = "unix"
	}
	c, err := (&net.Dialer{}).DialContext(ctx, kind, h.Address)
	if errors.Is(err, fs.ErrPermission) {
		return "", failure.WithHint(err, "Let the user of repmgrd open it: in haproxy.cfg, stats socket %s mode 660 level admin group postgres", h.Address)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if limit, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(limit)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(c, commands+"\n"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(c, sayLimit))
	return string(text), err
}
