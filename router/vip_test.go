package router_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/router"
)

// The address is on the interface while the lease lasts, no longer, and the neighbours learn where it is. The test makes
// two network namespaces, which end with it.
func TestVIP(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may make network namespaces")
	}
	runtime.LockOSThread() // and never unlock: the thread ends with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	neighbour := exec.Command("unshare", "--net", "sleep", "600")
	neighbour.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	require.NoError(t, neighbour.Start())
	t.Cleanup(func() { _ = neighbour.Process.Kill(); _ = neighbour.Wait() })
	there := fmt.Sprintf("--target=%d", neighbour.Process.Pid)

	sh := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
		return string(out)
	}
	await := func(what string, ok func() bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for !ok() { // here, and not in another thread, which would be in another namespace
			require.NoError(t, wait.Pause(ctx, 20*time.Millisecond), what)
		}
	}
	await("the namespace of the neighbour", func() bool {
		mine, _ := os.Readlink("/proc/thread-self/ns/net")
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", neighbour.Process.Pid))
		return err == nil && its != mine && strings.Contains(its, "net:") && commandOf(neighbour.Process.Pid) == "sleep"
	})
	sh("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far", "netns", fmt.Sprint(neighbour.Process.Pid))
	sh("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	sh("ip", "link", "set", "eth0", "up")
	sh("nsenter", there, "--net", "ip", "addr", "add", "192.0.2.2/24", "dev", "far")
	sh("nsenter", there, "--net", "ip", "link", "set", "far", "up")
	mac := strings.Fields(strings.SplitAfter(sh("ip", "link", "show", "eth0"), "link/ether ")[1])[0]

	left := func(d time.Duration) router.Destination {
		return router.Destination{Primary: registry.Record{ID: 1, Name: "node1"}, Here: true, Until: time.Now().Add(d)}
	}
	const lease = 2900 * time.Millisecond
	for _, address := range []string{"192.0.2.10/24", "2001:db8::10/64"} {
		v := &router.VIP{Address: netip.MustParsePrefix(address), Interface: "eth0"}
		ip := v.Address.Addr().String()
		on := func() bool { return strings.Contains(sh("ip", "addr", "show", "eth0"), ip+"/") }
		sh("nsenter", there, "--net", "ip", "neigh", "replace", ip, "lladdr", "02:00:00:00:00:99", "dev", "far", "nud", "stale")

		require.NoError(t, v.Leave(t.Context(), registry.Record{}), "a node that never had it")
		for _, capability := range []uint{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
			without(t, capability, func() {
				require.ErrorContains(t, v.Point(t.Context(), router.Destination{Primary: registry.Record{ID: 2, Name: "node2"}}), "repmgrd needs CAP_NET", "a standby says it beforehand")
			})
		}
		require.False(t, on())
		require.ErrorContains(t, v.Point(t.Context(), left(1200*time.Millisecond)), "less than a second", "the kernel may be late")
		require.False(t, on())
		require.NoError(t, v.Point(t.Context(), left(lease)))
		require.True(t, on())
		require.Regexp(t, `valid_lft [12]sec`, sh("ip", "addr", "show", "eth0"))
		await("the neighbour knows where it is", func() bool {
			require.NoError(t, v.Point(context.Background(), left(lease))) // as it is renewed
			return strings.Contains(sh("nsenter", there, "--net", "ip", "neigh", "show", ip), mac)
		})

		last := left(1900 * time.Millisecond)
		require.NoError(t, v.Point(t.Context(), last))
		last.Until = last.Until.Add(-time.Second) // no whole second: what was said last holds
		require.NoError(t, v.Point(t.Context(), last))
		require.True(t, on())
		await("the end of the lease, without a word of the daemon", func() bool { return !on() })

		require.NoError(t, v.Point(t.Context(), left(lease)))
		require.True(t, on())
		require.NoError(t, v.Point(t.Context(), router.Destination{Primary: registry.Record{ID: 2, Name: "node2"}}))
		require.False(t, on(), "another node is the primary")
		require.NoError(t, v.Leave(t.Context(), registry.Record{}), "a second time")
		sh("ip", "addr", "add", address, "dev", "eth0")
		require.NoError(t, v.Leave(t.Context(), registry.Record{}), "somebody else has added it in another way")
		require.False(t, on())
	}

	own := router.VIP{Address: netip.MustParsePrefix("192.0.2.10/24"), Interface: "eth0"}
	sh("ip", "addr", "del", "192.0.2.1/24", "dev", "eth0")
	require.NoError(t, own.Point(t.Context(), left(lease)))
	sh("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	require.NoError(t, own.Leave(t.Context(), registry.Record{}))
	require.Contains(t, sh("ip", "addr", "show", "eth0"), "192.0.2.1/", "what the machine got later is no part of it")

	own.Address = netip.MustParsePrefix("192.0.2.1/24")
	self := registry.Record{ID: 1, Name: "node1", Conninfo: "host=192.0.2.1"}
	for _, here := range []bool{true, false} {
		require.ErrorContains(t, own.Point(t.Context(), router.Destination{Primary: self, Self: self, Here: here, Until: time.Now().Add(lease)}), "is the address of node \"node1\" (ID: 1) itself")
	}
	require.Error(t, own.Leave(t.Context(), self))
	require.Contains(t, sh("ip", "addr", "show", "dev", "eth0", "permanent"), "192.0.2.1/", "router_vip is set to the machine's own address")

	v := &router.VIP{Address: netip.MustParsePrefix("192.0.2.10/24"), Interface: "eth9"}
	require.ErrorContains(t, v.Point(t.Context(), left(lease)), "interface eth9: ")
}

func commandOf(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(text))
}

// without calls do in this thread without a capability.
func without(t *testing.T, capability uint, do func()) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var was [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &was[0]))
	now := was
	now[0].Effective &^= 1 << capability
	require.NoError(t, unix.Capset(&header, &now[0]))
	defer func() { require.NoError(t, unix.Capset(&header, &was[0])) }()
	do()
}
