package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
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
	state, has := servers[d.Primary.Name]
	if !has {
		return failure.WithHint(fmt.Errorf("backend %q has no server %q, but %s", h.Backend, d.Primary.Name, strings.Join(slices.Sorted(maps.Keys(servers)), ", ")), "Name its servers as the nodes.")
	}
	var down, cut []string
	for _, r := range d.Others {
		if _, has := servers[r.Name]; has {
			down, cut = append(down, h.set(r, "down")), append(cut, h.cut(r))
		}
	}
	if err := h.do(ctx, slices.Concat(down, []string{h.set(d.Primary, "up")}, cut)); err != nil || state == "0" {
		return err
	}
	return failure.WithHint(fmt.Errorf("the server of the primary, %s/%s, is in maintenance or drained, and gets no clients", h.Backend, d.Primary.Name), "Whoever has done that may say to its socket: set server %s/%s state ready", h.Backend, d.Primary.Name)
}

// Leave makes a node no server of the backend, and ends its sessions.
func (h *HAProxy) Leave(ctx context.Context, former registry.Record) error {
	servers, err := h.servers(ctx)
	if _, has := servers[former.Name]; err != nil || !has {
		return err
	}
	return h.do(ctx, []string{h.set(former, "down"), h.cut(former)})
}

func (h *HAProxy) set(r registry.Record, state string) string {
	return fmt.Sprintf("set server %s/%s health %s", h.Backend, r.Name, state)
}

func (h *HAProxy) cut(r registry.Record) string {
	return fmt.Sprintf("shutdown sessions server %s/%s", h.Backend, r.Name)
}

// do sends commands that have no answer where they succeed.
func (h *HAProxy) do(ctx context.Context, commands []string) error {
	said, err := h.ask(ctx, strings.Join(commands, "; "))
	if said = strings.Join(strings.Fields(said), " "); err == nil && said != "" {
		err = fmt.Errorf("it says: %s", said)
		if strings.Contains(said, "denied") {
			err = failure.WithHint(err, "Give the socket \"level admin\" in haproxy.cfg.")
		}
	}
	return err
}

// servers are those of the backend, by their names, with what an operator has made of each: 0 is nothing.
func (h *HAProxy) servers(ctx context.Context) (servers map[string]string, err error) {
	said, err := h.ask(ctx, "show servers state "+h.Backend)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if len(lines) < 2 || strings.TrimSpace(lines[0]) != "1" { // the version of the format
		err = fmt.Errorf("show servers state %s: %s", h.Backend, strings.TrimSpace(said))
		if strings.Contains(said, "find backend") {
			err = failure.WithHint(err, "Set router_haproxy_backend to the name of its section listen, or backend, for the primary.")
		}
		return nil, err
	}
	columns := strings.Fields(strings.TrimPrefix(lines[1], "#"))
	name, state := slices.Index(columns, "srv_name"), slices.Index(columns, "srv_admin_state")
	servers = map[string]string{}
	for _, line := range lines[2:] {
		if f := strings.Fields(line); min(name, state) >= 0 && max(name, state) < len(f) {
			servers[f[name]] = f[state]
		}
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("backend %q has no servers", h.Backend)
	}
	return servers, nil
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
	if _, err = io.WriteString(c, commands+"\n"); err == nil {
		var text []byte
		text, err = io.ReadAll(io.LimitReader(c, sayLimit))
		said = string(text)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok { // without the port of our own, which differs each time
		err = fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return said, err
}
