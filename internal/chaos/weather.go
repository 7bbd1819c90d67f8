package chaos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Weather is what a line does to the packets that arrive at a machine: it does
// what tc's netem does, which not every kernel has, over the kernel's packet
// queue. Packets keep their order.
type Weather struct {
	Delay  time.Duration // of each packet
	Jitter time.Duration // added to it, evenly from 0
	Loss   float64       // of all packets, 0 to 1
}

// weather is a [Weather] at work on one machine.
type weather struct {
	Weather
	fd   int
	quit chan struct{}
	wg   sync.WaitGroup
	rng  *rand.Rand
}

// setWeather begins; calm ends it.
func (n *network) setWeather(name string, w Weather, seed uint64) error {
	n.calm(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machines[name]
	live := &weather{Weather: w, quit: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 1))}
	if err := m.within(live.open); err != nil {
		return fmt.Errorf("queue the packets of %s: %w", name, err)
	}
	packets := make(chan packet, 1<<14) // as many as the kernel holds for us
	live.wg.Go(func() { live.receive(packets) })
	live.wg.Go(func() { live.deliver(packets) })
	n.weather[name] = live
	return n.apply(map[string]bool{name: true})
}

// calm delivers at once again. What is still on the way is lost.
func (n *network) calm(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	live := n.weather[name]
	if live == nil {
		return
	}
	delete(n.weather, name)
	_ = n.apply(map[string]bool{name: true})
	close(live.quit)
	live.wg.Wait()
	_ = unix.Close(live.fd)
}

func (w *weather) rules() string {
	return "-A INPUT ! -i lo -j NFQUEUE --queue-num 0 --queue-bypass\n"
}

// The words of linux/netfilter/nfnetlink_queue.h.
const (
	nfqPacket, nfqVerdict, nfqConfig             = 3 << 8, 3<<8 | 1, 3<<8 | 2
	nfqaPacketHdr, nfqaVerdictHdr                = 1, 2
	nfqaCfgCmd, nfqaCfgParams, nfqaCfgMax        = 1, 2, 3
	nfqCmdBind, nfqCopyMeta                      = 1, 1
	nfDrop, nfAccept                      uint32 = 0, 1
)

func (w *weather) open() (err error) {
	w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	err = unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, step := range []func() error{
		func() error { return w.request(nfqConfig, nfqaCfgCmd, []byte{nfqCmdBind, 0, 0, unix.AF_INET}, true) },
		func() error { return w.request(nfqConfig, nfqaCfgParams, []byte{0, 0, 0, 0, nfqCopyMeta}, true) },
		func() error {
			return w.request(nfqConfig, nfqaCfgMax, binary.BigEndian.AppendUint32(nil, 1<<14), true)
		},
		func() error {
			return unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
		},
		func() error { return unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) },
	} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		_ = unix.Close(w.fd)
	}
	return err
}

// request sends one netlink message with one attribute.
func (w *weather) request(kind uint16, attr uint16, value []byte, acknowledged bool) error {
	const header, generic, attrHeader = 16, 4, 4
	padded := (len(value) + 3) &^ 3
	b := make([]byte, header+generic+attrHeader+padded)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], kind)
	flags := uint16(unix.NLM_F_REQUEST)
	if acknowledged {
		flags |= unix.NLM_F_ACK
	}
	ne.PutUint16(b[6:], flags)
	ne.PutUint16(b[20:], uint16(attrHeader+len(value)))
	ne.PutUint16(b[22:], attr)
	copy(b[24:], value)
	if err := unix.Sendto(w.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil || !acknowledged {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(w.fd, answer, 0)
	if err != nil {
		return err
	}
	if n >= 20 && ne.Uint16(answer[4:]) == unix.NLMSG_ERROR {
		if errno := -int32(ne.Uint32(answer[16:])); errno != 0 {
			return unix.Errno(errno)
		}
	}
	return nil
}

type packet struct {
	id  uint32
	due time.Time
}

// receive takes the packets from the kernel and decides when each is due.
func (w *weather) receive(packets chan<- packet) {
	defer close(packets)
	buf := make([]byte, 1<<16)
	var last time.Time
	for {
		select {
		case <-w.quit:
			return
		default:
		}
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			continue // ENOBUFS: packets got lost, as the line does anyway
		}
		if err != nil {
			return
		}
		now := time.Now()
		for _, id := range packetIDs(buf[:n]) {
			if w.rng.Float64() < w.Loss {
				w.verdict(id, nfDrop)
				continue
			}
			due := now.Add(w.Delay)
			if w.Jitter > 0 {
				due = due.Add(rand.N(w.Jitter))
			}
			if due.Before(last) {
				due = last
			}
			last = due
			select {
			case packets <- packet{id, due}:
			case <-w.quit:
				return
			}
		}
	}
}

func (w *weather) deliver(packets <-chan packet) {
	for p := range packets {
		t := time.NewTimer(time.Until(p.due))
		select {
		case <-t.C:
		case <-w.quit:
			t.Stop()
		}
		w.verdict(p.id, nfAccept)
	}
}

func (w *weather) verdict(id, verdict uint32) {
	value := binary.BigEndian.AppendUint32(nil, verdict)
	_ = w.request(nfqVerdict, nfqaVerdictHdr, binary.BigEndian.AppendUint32(value, id), false)
}

// packetIDs reads the packets of a datagram of netlink messages.
func packetIDs(b []byte) (ids []uint32) {
	ne := binary.NativeEndian
	for len(b) >= 20 {
		size := int(ne.Uint32(b))
		if size < 20 || size > len(b) {
			return ids
		}
		if ne.Uint16(b[4:]) == nfqPacket {
			for attrs := b[20:size]; len(attrs) >= 4; {
				n := int(ne.Uint16(attrs))
				if n < 4 || n > len(attrs) {
					break
				}
				if ne.Uint16(attrs[2:])&0x3fff == nfqaPacketHdr && n >= 8 {
					ids = append(ids, binary.BigEndian.Uint32(attrs[4:]))
				}
				attrs = attrs[min(len(attrs), (n+3)&^3):]
			}
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return ids
}
