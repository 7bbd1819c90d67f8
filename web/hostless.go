package web

import (
	"bytes"
	"net"
)

// hostlessListener accepts requests of HTTP/1.1 without a Host header, which net/http refuses and many configurations of HAProxy
// send ("httpchk GET /primary HTTP/1.1"). Such a connection carries one request.
type hostlessListener struct{ net.Listener }

func (l hostlessListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &hostlessConn{Conn: c}, nil
}

// hostlessConn looks at the head of the first request before it hands it on.
type hostlessConn struct {
	net.Conn
	head   []byte // read, and not handed on yet
	passed bool   // the first request was looked at
}

func (c *hostlessConn) Read(p []byte) (int, error) {
	for !c.passed {
		part := make([]byte, 1024)
		n, err := c.Conn.Read(part)
		c.head = append(c.head, part[:n]...)
		end := bytes.Index(c.head, []byte("\r\n\r\n"))
		if end >= 0 {
			c.head = withHost(c.head, end)
		}
		c.passed = end >= 0 || err != nil || len(c.head) > headBytes || bytes.Contains(c.head, []byte("\n\n"))
		if err != nil && len(c.head) == 0 {
			return 0, err
		}
	}
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite is what net/http ends a connection with whose request it did not read.
func (c *hostlessConn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// withHost adds an empty Host header to a request that has none, and ends the connection after it. end is where its headers end.
// What is not a plain request of HTTP/1.1 stays as it is.
func withHost(request []byte, end int) []byte {
	line, headers, _ := bytes.Cut(request[:end], []byte("\r\n"))
	words := bytes.Split(line, []byte(" "))
	if len(words) != 3 || string(words[2]) != "HTTP/1.1" || bytes.ContainsAny(line, "\n\r") {
		return request
	}
	for header := range bytes.SplitSeq(headers, []byte("\n")) {
		if name, _, _ := bytes.Cut(header, []byte(":")); bytes.EqualFold(bytes.TrimSpace(name), []byte("host")) {
			return request
		}
	}
	out := append(bytes.Clone(line), "\r\nHost:\r\nConnection: close"...)
	return append(out, request[len(line):]...)
}
