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
	"sync"
	"sync/atomic"
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
	handler := s.Handler
	if config == nil {
		l = hostlessListener{l}
	} else {
		l = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return config() }})
		handler = verifying(config, handler)
	}
	open := &openConns{conns: map[net.Conn]connState{}}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headWithin, ReadTimeout: bodyWithin, WriteTimeout: writeWithin, IdleTimeout: idleFor, MaxHeaderBytes: headBytes,
		ConnState: open.note, ErrorLog: log.New(debugLog{s.logger()}, "", 0), DisableGeneralOptionsHandler: true,
		BaseContext: func(net.Listener) context.Context { return ctx }, // so that the readers of events are let go at the end
	}
	if h, ok := s.Handler.(interface{ keep(ctx context.Context) }); ok {
		looking, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { h.keep(looking) })
		defer func() { cancel(); wg.Wait() }()
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

// tls makes the configuration of TLS from files, again when they have changed. Where they can not be read then, the earlier
// ones stay in force. nil: without TLS.
func (s *Server) tls() (func() (*tls.Config, error), error) {
	if s.Cert == "" && s.Key == "" {
		return nil, nil
	}
	files := &made[*tls.Config]{paths: []string{s.Cert, s.Key, s.ClientCA}, from: configOf}
	var told atomic.Value
	config := func() (*tls.Config, error) {
		have, err := files.get()
		if have == nil {
			return nil, err
		}
		said := ""
		if err != nil {
			said = err.Error()
		}
		if before, _ := told.Swap(said).(string); said != "" && said != before {
			s.logger().Error("the certificates can not be read again: the earlier ones stay in force", "err", err)
		}
		return have, nil
	}
	_, err := config()
	return config, err
}

func configOf(files []file) (*tls.Config, error) {
	cert, key, ca := files[0], files[1], files[2]
	pair, err := tls.X509KeyPair(cert.content, key.content)
	if err != nil {
		return nil, fmt.Errorf("http_cert %s, http_key %s: %w", cert.path, key.path, err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if ca.path == "" {
		return config, nil
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !config.ClientCAs.AppendCertsFromPEM(ca.content) {
		return nil, fmt.Errorf("http_client_ca %s: there is no certificate in it", ca.path)
	}
	return config, nil
}

// verifying takes a client for one without a certificate where its certificate is not valid any more: a connection may outlive it,
// and its authority.
func verifying(config func() (*tls.Config, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 && !verified(config, r.TLS.PeerCertificates) {
			state := *r.TLS
			state.VerifiedChains = nil
			r.TLS = &state
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func verified(config func() (*tls.Config, error), certs []*x509.Certificate) bool {
	now, err := config()
	if err != nil || now.ClientCAs == nil {
		return false
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err = certs[0].Verify(x509.VerifyOptions{Roots: now.ClientCAs, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
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
