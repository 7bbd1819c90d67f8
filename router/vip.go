package router

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// VIP is an address that is on a network interface of this machine as long as its node is the primary. The kernel itself
// removes it when the lease is over, whatever has become of the daemon: it is given to the interface for
// so many seconds as the lease lasts, again and again. It needs CAP_NET_ADMIN and CAP_NET_RAW.
type VIP struct {
	Address   netip.Prefix
	Interface string

	taken, shown time.Time // when it was taken, and when the neighbours were last told where it is
	refused      error     // by the kernel, when it was last asked
}

const (
	vipRenew  = 250 * time.Millisecond
	vipMargin = 300 * time.Millisecond // the kernel removes an address up to 0.25 s late
	showFor   = 3 * time.Second        // the neighbours are told each time that it is renewed: a message may get lost
	showEvery = 10 * time.Second       // afterwards
)

func (v *VIP) String() string { return fmt.Sprintf("address %s on %s", v.Address, v.Interface) }

func (v *VIP) renewAfter() time.Duration { return vipRenew }

// alone is the address without its network. As one of a network it could become the first of that on the interface, where the machine
// gets its own one later (DHCP, a restart of the network), and the kernel removes that together with the first.
func (v *VIP) alone() netip.Prefix {
	return netip.PrefixFrom(v.Address.Addr(), v.Address.Addr().BitLen())
}

// Point gives the address to the interface, or takes it away.
func (v *VIP) Point(ctx context.Context, d Destination) error {
	for _, r := range append([]registry.Record{d.Primary}, d.Others...) {
		if err := v.notOf(r); err != nil {
			return err
		}
	}
	if !d.Here {
		if err := v.Leave(ctx, d.Self); err != nil {
			return err
		}
		return v.mayShow()
	}
	i, have, err := v.find()
	if err != nil {
		return err
	}
	seconds := uint32(max(0, time.Until(d.Until)-vipMargin) / time.Second)
	switch {
	case seconds > 0:
	case len(have) > 0: // what the interface was told last holds for as long as the lease
		return nil
	case v.refused != nil:
		return v.refused
	default:
		return failure.WithHint(errors.New("the address is not taken: the lease of this primary lasts for less than a second"), "Set silence_timeout to more than it is.")
	}
	if v.refused = v.set(i, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, v.alone(), seconds); v.refused != nil {
		return v.refused
	}
	now := time.Now()
	if now.Add(time.Duration(seconds) * time.Second).After(d.Until) { // this process stood still before the kernel began to count
		return v.Leave(ctx, d.Self)
	}
	if len(have) == 0 {
		v.taken, v.shown = now, time.Time{}
	}
	if now.Sub(v.taken) < showFor || now.Sub(v.shown) > showEvery {
		v.shown = now
		if err := v.show(i); err != nil {
			return partial{fmt.Errorf("the neighbours are not told of it: %w", err)}
		}
	}
	return nil
}

// notOf refuses an address that is a node's own: it would be taken away from its machine.
func (v *VIP) notOf(r registry.Record) error {
	host, _, _ := at(r)
	if own, err := netip.ParseAddr(host); err == nil && own.Unmap() == v.Address.Addr() {
		return failure.WithHint(fmt.Errorf("it is the address of %s itself, by its conninfo", r), "Set router_vip to an address that no machine has of its own.")
	}
	return nil
}

// Leave takes the address away. Where it is not there the kernel is asked all the same, so that a standby says
// beforehand, and not only in the next failover, that it may not do that.
func (v *VIP) Leave(_ context.Context, former registry.Record) error {
	if err := v.notOf(former); err != nil {
		return err
	}
	i, have, err := v.find()
	if err == nil && len(have) == 0 {
		have = []netip.Prefix{v.alone()}
	}
	for _, p := range have {
		err = errors.Join(err, v.set(i, unix.RTM_DELADDR, 0, p, 0))
	}
	return err
}

// find returns the interface, and the address as it is on that, which somebody else may have added with its network.
func (v *VIP) find() (i *net.Interface, have []netip.Prefix, err error) {
	if i, err = net.InterfaceByName(v.Interface); err != nil {
		return nil, have, fmt.Errorf("interface %s: %w", v.Interface, err)
	}
	all, err := i.Addrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == v.Address.Addr() {
			have = append(have, p)
		}
	}
	return i, have, err
}

// set sends a message of rtnetlink(7) about the address, and waits for its acknowledgement.
func (v *VIP) set(i *net.Interface, kind, flags uint16, address netip.Prefix, seconds uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return err
	}
	family, preferred := byte(unix.AF_INET), seconds
	if v.Address.Addr().Is6() {
		family, preferred = unix.AF_INET6, 0 // no connection from here is to use it
	}
	order := binary.NativeEndian
	body := []byte{family, byte(address.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	body = order.AppendUint32(body, uint32(i.Index))
	attribute := func(kind uint16, value []byte) { // all values here have a multiple of 4 bytes
		body = order.AppendUint16(body, uint16(4+len(value)))
		body = append(order.AppendUint16(body, kind), value...)
	}
	attribute(unix.IFA_LOCAL, v.Address.Addr().AsSlice())
	attribute(unix.IFA_ADDRESS, v.Address.Addr().AsSlice())
	if kind == unix.RTM_NEWADDR {
		attribute(unix.IFA_CACHEINFO, append(order.AppendUint32(order.AppendUint32(nil, preferred), seconds), make([]byte, 8)...))
		attribute(unix.IFA_FLAGS, order.AppendUint32(nil, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE))
	}
	message := order.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	message = order.AppendUint16(message, kind)
	message = order.AppendUint16(message, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	message = append(message, make([]byte, 8)...) // number and port: there is one message on this socket
	if err := unix.Sendto(fd, append(message, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(fd, answer, 0)
	}
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || order.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel gave an answer that is none")
	}
	switch code := unix.Errno(-int32(order.Uint32(answer[unix.SizeofNlMsghdr:]))); code {
	case 0:
		return nil
	case unix.EADDRNOTAVAIL:
		if kind == unix.RTM_DELADDR { // it is gone already
			return nil
		}
		return code
	case unix.EPERM:
		return denied(code)
	default:
		return code
	}
}

func denied(err error) error {
	return failure.WithHint(fmt.Errorf("%w: repmgrd needs CAP_NET_ADMIN and CAP_NET_RAW for router_vip", err), "As root: setcap cap_net_admin,cap_net_raw+ep %s; then restart repmgrd.", os.Args[0])
}

// socket is one for what the neighbours are told.
func (v *VIP) socket() (fd int, err error) {
	if v.Address.Addr().Is6() {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	} else {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		err = denied(err)
	}
	return fd, err
}

// mayShow says beforehand whether show will be allowed.
func (v *VIP) mayShow() error {
	fd, err := v.socket()
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// show tells the neighbours that the address is here: by a gratuitous ARP, or an unsolicited neighbour advertisement.
func (v *VIP) show(i *net.Interface) error {
	if len(i.HardwareAddr) != 6 { // lo has no neighbours
		return nil
	}
	fd, err := v.socket()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if v.Address.Addr().Is6() {
		return v.advertise(fd, i)
	}
	ip := v.Address.Addr().AsSlice()
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, their lengths, a request: RFC 826, and RFC 5227 section 3
	packet = append(append(packet, i.HardwareAddr...), ip...)
	packet = append(append(packet, 0, 0, 0, 0, 0, 0), ip...)
	to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{8, 6}), Ifindex: i.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}} // ETH_P_ARP
	return unix.Sendto(fd, packet, 0, to)
}

func (v *VIP) advertise(fd int, i *net.Interface) error {
	err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, i.Index),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)) // others are ignored
	if err != nil {
		return err
	}
	packet := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, v.Address.Addr().AsSlice()...) // override what is known: RFC 4861 section 4.4; the kernel adds the checksum
	packet = append(append(packet, 2, 1), i.HardwareAddr...)
	return unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{ZoneId: uint32(i.Index), Addr: netip.MustParseAddr("ff02::1").As16()})
}
