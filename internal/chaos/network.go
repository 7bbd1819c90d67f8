package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// fate is what happens to the packets of one direction between two machines.
type fate int

const (
	delivered fate = iota
	dropped
	reset       // refused: TCP by a reset, anything else by ICMP
	unreachable // refused: ICMP host unreachable
)

// network is a switch, a bridge in the namespace of the run, and the machines
// plugged in. Safe for concurrent use.
//
// Packets are dropped where they arrive: to the sender that is silence, as of a
// cable that was cut somewhere.
type network struct {
	mu       sync.Mutex
	machines map[string]*machine
	fates    map[[2]string]fate // from, to; what is not there is delivered
	weather  map[string]*weather
}

// newNetwork makes the bridge. It must be called inside: see Isolate.
func newNetwork() (*network, error) {
	n := &network{machines: map[string]*machine{}, fates: map[[2]string]fate{}, weather: map[string]*weather{}}
	return n, ipBatch("link set lo up", "link add br0 type bridge forward_delay 0", "link set br0 up")
}

// plug makes a machine and connects it.
func (n *network) plug(name, ip string) (*machine, error) {
	m, err := newMachine(name, ip)
	if err != nil {
		return nil, err
	}
	cable := "to-" + name
	err = ipBatch(
		fmt.Sprintf("link add %s type veth peer name eth0 netns /proc/%d/fd/%d", cable, os.Getpid(), m.fd),
		"link set "+cable+" master br0",
		"link set "+cable+" up")
	if err == nil {
		err = m.within(func() error {
			return ipBatch("link set lo up", "addr add "+ip+"/24 dev eth0", "link set eth0 up")
		})
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("plug in %s: %w", name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.machines[name] = m
	return m, nil
}

// cable connects or disconnects a machine: its switch port is down, its own
// interface has no carrier.
func (n *network) cable(name string, connected bool) error {
	state := map[bool]string{true: "up", false: "down"}[connected]
	return ipBatch("link set to-" + name + " " + state)
}

// way is one direction between two machines.
type way struct{ from, to string }

// set decides the fate of packets.
func (n *network) set(f fate, ways ...way) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := map[string]bool{}
	for _, w := range ways {
		if n.fates[[2]string{w.from, w.to}] == f {
			continue
		}
		if f == delivered {
			delete(n.fates, [2]string{w.from, w.to})
		} else {
			n.fates[[2]string{w.from, w.to}] = f
		}
		changed[w.to] = true
	}
	return n.apply(changed)
}

// mend delivers everything again, and plugs every cable in.
func (n *network) mend() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	changed := map[string]bool{}
	for k := range n.fates {
		changed[k[1]] = true
	}
	clear(n.fates)
	errs = append(errs, n.apply(changed))
	for name := range n.machines {
		errs = append(errs, n.cable(name, true))
	}
	return errors.Join(errs...)
}

// apply writes the rules of the changed machines, each by one atomic replacement, all at once.
func (n *network) apply(changed map[string]bool) error {
	var wg sync.WaitGroup
	errs := make([]error, len(changed))
	for i, name := range slices.Sorted(maps.Keys(changed)) {
		m := n.machines[name]
		if m == nil {
			continue
		}
		rules := n.rules(name)
		wg.Go(func() { errs[i] = m.within(func() error { return iptablesRestore(rules) }) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (n *network) rules(to string) string {
	var b strings.Builder
	b.WriteString("*filter\n")
	for _, from := range slices.Sorted(maps.Keys(n.machines)) {
		source := "-A INPUT -s " + n.machines[from].ip
		switch n.fates[[2]string{from, to}] {
		case delivered:
		case dropped:
			b.WriteString(source + " -j DROP\n")
		case reset:
			// A reset is not answered by a reset: it arrives.
			b.WriteString(source + " -p tcp ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset\n")
			b.WriteString(source + " ! -p tcp -j REJECT\n")
		case unreachable:
			b.WriteString(source + " -j REJECT --reject-with icmp-host-unreachable\n")
		}
	}
	if w := n.weather[to]; w != nil {
		b.WriteString(w.rules())
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// both is both directions between each of these and each of those.
func both(these, those []string) (ways []way) {
	for _, a := range these {
		for _, b := range those {
			if a != b {
				ways = append(ways, way{a, b}, way{b, a})
			}
		}
	}
	return ways
}

func ipBatch(lines ...string) error {
	cmd := exec.CommandContext(context.Background(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(lines, "; "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func iptablesRestore(rules string) error {
	cmd := exec.CommandContext(context.Background(), "iptables-restore", "-w", "5")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s in\n%s", err, strings.TrimSpace(string(out)), rules)
	}
	return nil
}
