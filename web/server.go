package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	headWithin  = 5 * time.Second  // the head of a request
	bodyWithin  = 10 * time.Second // all of it
	writeWithin = 10 * time.Second // the answer
	idleFor     = time.Minute      // a connection between two requests
	endWithin   = time.Second      // requests that run when the server ends
	headBytes   = 16 << 10         // the head of a request, at most
	connections = 512              // at once, at most
)

// Server is the socket of a handler. With Cert and Key, the paths of a certificate and its key in PEM, it speaks TLS only; with
// ClientCA it asks clients for a certificate and verifies the one that is given. The files are read again when they have changed.
//
// It limits the time, the size and the number of requests: where there are too many connections, the one that is idle
// for longest is closed. Over plain TCP a request of HTTP/1.1 may lack its Host header, as the checks of HAProxy often do.
type Server struct {
	Listen              string // address and port, such as "127.0.0.1:8008"
	Cert, Key, ClientCA string
	Handler             http.Handler
	Logger              *slog.Logger // what clients do wrong at level debug, and certificates that can not be read; nil: none
}

func (s *Server) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

// Serve answers until ctx ends, and then returns nil. It calls ready with the address when it listens. The error
// says why it could not; a certificate that can not be read is one.
func (s *Server) Serve(ctx context.Context, ready func(net.Addr)) error {
	config, err := s.tls()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("http_listen %s: %w", s.Listen, err)
	}
	if config == nil {
		l = hostlessListener{l}
	} else {
		l = tls.NewListener(l, config)
	}
	open := &openConns{conns: map[net.Conn]connState{}}
	server := &http.Server{
		Handler: s.Handler, ReadHeaderTimeout: headWithin, ReadTimeout: bodyWithin, WriteTimeout: writeWithin, IdleTimeout: idleFor, MaxHeaderBytes: headBytes,
		ConnState: open.note, ErrorLog: log.New(debugLog{s.logger()}, "", 0), DisableGeneralOptionsHandler: true,
		BaseContext: func(net.Listener) context.Context { return ctx }, // so that the readers of events are let go at the end
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		if server.Shutdown(limit) != nil {
			_ = server.Close()
		}
	})
	ready(l.Addr())
	err = server.Serve(l)
	if !stop() {
		<-ended
	}
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("http_listen %s: %w", s.Listen, err)
}

// debugLog logs what net/http says, which is about clients.
type debugLog struct{ log *slog.Logger }

func (d debugLog) Write(p []byte) (int, error) {
	d.log.Debug("http", "said", string(p))
	return len(p), nil
}

func (s *Server) tls() (*tls.Config, error) {
	if s.Cert == "" && s.Key == "" {
		return nil, nil
	}
	f := &tlsFiles{cert: s.Cert, key: s.Key, ca: s.ClientCA, log: s.logger()}
	if _, err := f.config(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: f.config}, nil
}

// tlsFiles makes the configuration of TLS from files, again when they have changed. Where they can not be read then, the
// earlier ones stay in force.
type tlsFiles struct {
	cert, key, ca string
	log           *slog.Logger

	mu   sync.Mutex
	have *tls.Config
	of   [3]time.Time // when the files were changed
}

func (f *tlsFiles) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var of [3]time.Time
	for i, path := range []string{f.cert, f.key, f.ca} {
		if info, err := os.Stat(path); err == nil {
			of[i] = info.ModTime()
		}
	}
	if f.have != nil && of == f.of {
		return f.have, nil
	}
	config, err := f.load()
	switch {
	case err == nil:
		f.have = config
	case f.have == nil:
		return nil, err
	default:
		f.log.Error("the certificates can not be read again: the earlier ones stay in force", "err", err)
	}
	f.of = of
	return f.have, nil
}

func (f *tlsFiles) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("http_cert %s, http_key %s: %w", f.cert, f.key, err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if f.ca == "" {
		return config, nil
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, fmt.Errorf("http_client_ca: %w", err)
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("http_client_ca %s: there is no certificate in it", f.ca)
	}
	return config, nil
}

// openConns closes a connection where there are too many: one that is idle keeps nobody out.
type openConns struct {
	mu    sync.Mutex
	conns map[net.Conn]connState
}

type connState struct {
	active bool
	since  time.Time
}

func (o *openConns) note(c net.Conn, state http.ConnState) {
	if surplus := o.change(c, state); surplus != nil {
		_ = surplus.Close()
	}
}

// change notes the state of a connection, and returns one that has to be closed; nil: none.
func (o *openConns) change(c net.Conn, state http.ConnState) (surplus net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(o.conns, c)
		return nil
	}
	o.conns[c] = connState{state == http.StateActive, time.Now()}
	if len(o.conns) <= connections {
		return nil
	}
	for other, s := range o.conns { // the oldest that is idle, else the oldest; the new one stays
		if other == c {
			continue
		}
		if best := o.conns[surplus]; surplus == nil || best.active && !s.active || best.active == s.active && s.since.Before(best.since) {
			surplus = other
		}
	}
	delete(o.conns, surplus)
	return surplus
}
