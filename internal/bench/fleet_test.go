package bench

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

const failingOver = "5. repmgrd with failover=automatic, idle, as shipped"

// fleet is what the daemons of a cluster took while nothing happened.
type fleet struct {
	cpu         stat // per cent of a core: of each daemon with its watchdog
	memory      stat // MB: of each daemon with its watchdog
	connections stat // of each daemon to each other server, at most
	onPrimary   stat // connections that the primary server has for all daemons, each second
	serverCPU   stat // per cent of a core: of each server's processes
}

func TestIdleAutomatic(t *testing.T) {
	wanted(t)
	probe := pgtest.Start(t, pgtest.Options{})
	kinds := map[string]suite{"ours": ours(t)}
	if p := peer(probe); !p.missing() {
		kinds["peer"] = p
	}
	measured := map[string]*fleet{}
	t.Run("all at once", func(t *testing.T) {
		for name, s := range kinds {
			for _, size := range []int{3, 5} {
				for _, mode := range s.modes() {
					m := &fleet{}
					measured[fmt.Sprint(name, size, mode)] = m
					t.Run(fmt.Sprintf("%s, %d nodes%s", name, size, mode), func(t *testing.T) {
						t.Parallel()
						*m = s.fleet(t, size, mode)
					})
				}
			}
		}
	})
	if t.Failed() {
		return
	}
	for _, size := range []int{3, 5} {
		for _, mode := range kinds["ours"].modes() {
			o, p := measured[fmt.Sprint("ours", size, mode)], measured[fmt.Sprint("peer", size)]
			add := func(what, unit string, value func(*fleet) stat, bound limit) {
				f := figure{Section: failingOver, What: fmt.Sprintf("%d nodes%s: %s", size, mode, what), Unit: unit, Peer: peerName, Ours: value(o), Limit: bound}
				if p != nil {
					f.Theirs = value(p)
				}
				results.add(f)
			}
			add("CPU of a daemon and its watchdog", "% core", func(f *fleet) stat { return f.cpu }, limit{Value: 0.2})
			add("resident, a daemon and its watchdog", "MB", func(f *fleet) stat { return f.memory }, limit{Value: 50})
			add("connections of a daemon to another server", "at most", func(f *fleet) stat { return f.connections }, limit{Value: 2})
			add("connections of all daemons to the primary", "a second", func(f *fleet) stat { return f.onPrimary }, limit{Value: 2*float64(size) + 1})
			add("CPU of a server, all its processes", "% core", func(f *fleet) stat { return f.serverCPU }, limit{})
		}
	}
}

// modes are the settings that a cluster of this suite is measured with.
func (s suite) modes() []string {
	if s.name == peerName {
		return []string{""}
	}
	return []string{", off", ", quorum"}
}

// fleet runs a daemon for each node of a cluster, and measures all.
func (s suite) fleet(t *testing.T, size int, mode string) (m fleet) {
	settings := map[string]string{"autovacuum": "off"}
	maps.Copy(settings, s.settings)
	extra := []string{"failover=automatic", "promote_command='true'", "follow_command='true'"}
	if s.name != peerName {
		extra = []string{"failover=automatic", "synchronous_mode=" + strings.TrimPrefix(mode, ", ")}
	}
	servers := []*pgtest.Server{start(t, pgtest.Options{Name: "node1", Settings: settings})}
	confs := []string{s.register(t, servers[0], extra...)}
	for id := 2; id <= size; id++ {
		standby := pgtest.NewStandby(t, servers[0], pgtest.Options{Name: fmt.Sprintf("node%d", id)})
		conf := s.conf(t, id, standby, extra...)
		s.must(t, s.repmgr, "-f", conf, "standby", "register")
		servers, confs = append(servers, standby), append(confs, conf)
	}
	var pids [][]int
	for _, conf := range confs {
		pids = append(pids, []int{s.daemon(t, conf)})
	}
	pass(t, 3*settleTime/2, func() {}) // for a minute after an answer was late daemons ask more often, and all have just started
	for i := range pids {
		pids[i] = append(pids[i], childrenOf(t, pids[i][0])...)
	}
	sum := func(pids []int, f func(int) float64) (total float64) {
		for _, pid := range pids {
			total += f(pid)
		}
		return total
	}
	cpu := func(pid int) float64 { return cpuOf(pid).Seconds() }
	var before, serverBefore []float64
	for i := range pids {
		before = append(before, sum(pids[i], cpu))
		serverBefore = append(serverBefore, serverCPU(t, servers[i]).Seconds())
	}
	most := make([]float64, size)
	began := time.Now()
	pass(t, window, func() {
		var all float64
		for i := range pids {
			for _, server := range servers {
				n := sum(pids[i], func(pid int) float64 { return float64(connections(t, pid, server.Port)) })
				if server != servers[i] {
					most[i] = max(most[i], n)
				}
				if server == servers[0] {
					all += n
				}
			}
		}
		m.onPrimary.Samples = append(m.onPrimary.Samples, all)
	})
	took := time.Since(began).Seconds()
	for i := range pids {
		m.cpu.Samples = append(m.cpu.Samples, 100*(sum(pids[i], cpu)-before[i])/took)
		m.serverCPU.Samples = append(m.serverCPU.Samples, 100*(serverCPU(t, servers[i]).Seconds()-serverBefore[i])/took)
		m.memory.Samples = append(m.memory.Samples, sum(pids[i], func(pid int) float64 { return mebibytes(memoryOf(pid, "VmRSS:")) }))
		require.NotZero(t, memoryOf(pids[i][0], "VmRSS:"), "the daemon of %s ended", confs[i])
	}
	m.connections.Samples = most
	fmt.Fprintf(os.Stderr, "          %s, %d nodes%s: CPU %s, server %s, connections %s, on the primary %s, memory %s\n", s.name, size, mode, m.cpu, m.serverCPU, m.connections, m.onPrimary, m.memory)
	return m
}

// childrenOf are the processes that a process has started.
func childrenOf(t *testing.T, pid int) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	require.NoError(t, err)
	for _, list := range lists {
		b, _ := os.ReadFile(list) // a thread may have ended
		for _, f := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(f)
			require.NoError(t, err)
			pids = append(pids, child)
		}
	}
	return pids
}
