package surfaces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// checks are how configurations of HAProxy in the field ask a node whether it is the primary, or a standby.
var checks = []struct{ name, lines, up string }{
	{"options", "option httpchk\n http-check expect status 200", "primary"},
	{"head", "option httpchk HEAD /primary HTTP/1.0\n http-check expect status 200", "primary"},
	{"no_host", "option httpchk GET /primary HTTP/1.1", "primary"},
	{"slashes", "option httpchk GET //primary\n http-check expect status 200", "primary"},
	{"word", "option httpchk GET /role\n http-check expect string primary\n http-check disable-on-404", "primary"},
	{"master", "option httpchk\n http-check send meth OPTIONS uri /master ver HTTP/1.1 hdr Host example", "primary"},
	{"replica", "option httpchk GET /replica?lag=16MB\n http-check expect status 200", "standby"},
	{"all", "option httpchk GET /health", "any"},
}

// haproxy is a real one, with a section for each check.
type haproxy struct {
	socket string
	ports  map[string]int
}

func startHAProxy(t *testing.T, nodes []*daemontest.Host, http []int) *haproxy {
	t.Helper()
	program := program(t, "haproxy")
	dir := pgtest.ShortDir(t)
	p := &haproxy{socket: filepath.Join(dir, "socket"), ports: map[string]int{}}
	var conf strings.Builder
	fmt.Fprintf(&conf, "global\n stats socket %s mode 600 level admin\n maxconn 500\ndefaults\n mode tcp\n timeout connect 2s\n timeout client 10s\n timeout server 10s\n timeout check 1s\n default-server inter 300ms fall 2 rise 1\n", p.socket)
	for _, c := range checks {
		p.ports[c.name] = pgtest.Port(t)
		fmt.Fprintf(&conf, "listen %s\n bind 127.0.0.1:%d\n %s\n", c.name, p.ports[c.name], c.lines)
		for i, n := range nodes {
			fmt.Fprintf(&conf, " server node%d 127.0.0.1:%d check port %d\n", i+1, n.Port, http[i])
		}
	}
	file := filepath.Join(dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(file, []byte(conf.String()), 0o600))
	out, err := exec.Command(program, "-c", "-f", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	end := daemontest.Begin(t, exec.Command(program, "-db", "-f", file))
	t.Cleanup(func() { end() })
	return p
}

// up are the servers of a section that get connections.
func (p *haproxy) up(section string) (names []string, err error) {
	return pgtest.HAProxyUp(p.socket, section)
}

// agree waits until each section has the servers that it should have.
func (p *haproxy) agree(t *testing.T, primary string, standbys ...string) {
	t.Helper()
	want := map[string][]string{"primary": {primary}, "standby": standbys, "any": append([]string{primary}, standbys...)}
	for _, c := range checks {
		pgtest.WaitFor(t, "HAProxy's check "+c.name, func(context.Context) error {
			have, err := p.up(c.name)
			if err != nil {
				return err
			}
			should := slices.Sorted(slices.Values(want[c.up]))
			if slices.Sort(have); !slices.Equal(have, should) {
				return fmt.Errorf("up are %v, want %v", have, should)
			}
			return nil
		})
	}
}

// HAProxy finds the primary and the standbys by the checks that people have written for Patroni, also after a
// failover.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	http := []int{pgtest.Port(t), pgtest.Port(t), pgtest.Port(t)}
	nodes := daemontest.ClusterOf(t, 3, func(id int) []string {
		return []string{fmt.Sprintf("http_listen='127.0.0.1:%d'", http[id-1]), "metrics_compat=patroni", "rejoin=rewind"}
	})
	p := startHAProxy(t, nodes, http)
	p.agree(t, "node1", "node2", "node3")
	through := func(section string) (string, error) {
		c := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres connect_timeout=2", p.ports[section])
		out, err := exec.Command("psql", "-XAt", c, "-c", "SELECT pg_is_in_recovery()").Output()
		return strings.TrimSpace(string(out)), err
	}
	inRecovery, err := through("head")
	require.NoError(t, err)
	require.Equal(t, "f", inRecovery)

	nodes[0].Kill()
	winner := 0
	pgtest.WaitFor(t, "a primary behind HAProxy", func(context.Context) error {
		up, err := p.up("head")
		if len(up) > 1 {
			t.Errorf("two primaries: %v", up)
		}
		if err != nil || len(up) != 1 || up[0] == "node1" {
			return errors.Join(err, fmt.Errorf("up are %v", up))
		}
		_, err = fmt.Sscanf(up[0], "node%d", &winner)
		return err
	})
	inRecovery, err = through("head")
	require.NoError(t, err)
	require.Equal(t, "f", inRecovery)
	p.agree(t, fmt.Sprintf("node%d", winner), others(winner)...) // the former primary comes back as a standby

	// Each "no" says why, and a daemon that has ended is no primary.
	require.Contains(t, get(t, http[0], "/primary"), fmt.Sprintf("node%d is the primary of term", winner))
	nodes[winner-1].EndDaemon()
	pgtest.WaitFor(t, "no primary without its daemon", func(context.Context) error {
		up, err := p.up("no_host")
		if err == nil && len(up) > 0 {
			err = fmt.Errorf("up are %v", up)
		}
		return err
	})
}

func others(winner int) (names []string) {
	for i := 1; i <= 3; i++ {
		if i != winner {
			names = append(names, fmt.Sprintf("node%d", i))
		}
	}
	return names
}

func get(t *testing.T, port int, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), http.NoBody)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(text)
}
