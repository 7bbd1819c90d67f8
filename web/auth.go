package web

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	guessesAtOnce = 4           // answers to wrong passwords that are on their way
	guessFor      = time.Second // how long each of them is held back
)

// secret is the token in a file.
type secret struct{ made[[]byte] }

func newSecret(path string) *secret {
	return &secret{made[[]byte]{paths: []string{path}, from: tokenOf}}
}

// read returns the secret; an error where there is none now.
func (s *secret) read() ([]byte, error) {
	value, err := s.get()
	if err != nil {
		return nil, err
	}
	return value, nil
}

func tokenOf(files []file) ([]byte, error) {
	f := files[0]
	value := bytes.TrimSpace(f.content)
	switch {
	case f.mode.Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s can be read by everybody: chmod o= %s", f.path, f.path)
	case len(value) < 16:
		return nil, fmt.Errorf("%s holds %d characters, and 16 are the least: openssl rand -hex 32", f.path, len(value))
	}
	return value, nil
}

// CheckToken says what is wrong with the file of a token.
func CheckToken(path string) error {
	_, err := newSecret(path).read()
	return err
}

// local reports whether a request came from this machine, and names it as one. A page that a browser
// was given under a foreign name that leads here is not local, and neither is what a proxy on this machine says that it hands on.
func local(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() || r.Header["X-Forwarded-For"] != nil || r.Header["Forwarded"] != nil || r.Header["Via"] != nil {
		return false
	}
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name = strings.Trim(name, "[]")
	to, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && to.IsLoopback()
}

// known reports whether the request shows the token, or came with a client certificate that was verified.
// refused says why not.
func (h *handler) known(r *http.Request) (refused string, code int) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return "", http.StatusOK
	}
	scheme, given, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	ok = ok && strings.EqualFold(scheme, "Bearer")
	if _, password, basic := r.BasicAuth(); basic {
		given, ok = password, true
	}
	switch {
	case h.o.TokenFile == "":
		return "this is not allowed to anybody: set http_token_file, or http_client_ca", http.StatusForbidden
	case !ok:
		return "this needs a password (http_token_file), or a client certificate (http_client_ca)", http.StatusUnauthorized
	case r.TLS == nil && !local(r):
		return "the password was sent over the network, or by a proxy, in clear text: set http_cert and http_key, and another password", http.StatusForbidden
	}
	want, err := h.token.read()
	if err != nil {
		h.o.Logger.Error("a request was refused because http_token_file can not be used", "err", err)
		return "http_token_file can not be used: see the log of repmgrd", http.StatusServiceUnavailable
	}
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256(want) // of one length, so that the comparison takes the same time
	if subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return h.wrong(r)
	}
	return "", http.StatusOK
}

// wrong holds the answer to a wrong password back, so that a few can be tried in a second.
func (h *handler) wrong(r *http.Request) (refused string, code int) {
	select {
	case h.guesses <- struct{}{}:
		defer func() { <-h.guesses }()
	default:
		return "too many wrong passwords", http.StatusTooManyRequests
	}
	h.o.Logger.Warn("a request with a wrong password was refused", "from", r.RemoteAddr, "method", r.Method, "path", r.URL.Path)
	hold := time.NewTimer(guessFor)
	defer hold.Stop()
	select {
	case <-hold.C:
	case <-r.Context().Done():
	}
	return "the password is wrong", http.StatusUnauthorized
}

// mayAsk says why a request may not read what is more than a health check; empty: it may.
func (h *handler) mayAsk(r *http.Request) (refused string) {
	if local(r) {
		return ""
	}
	refused, _ = h.known(r)
	return refused
}

// mayChange refuses a request that may not change anything.
func (h *handler) mayChange(w http.ResponseWriter, r *http.Request) bool {
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		refused(w, r, refuse(http.StatusForbidden, "a page of another origin may not change anything here"))
		return false
	}
	if !h.listed(r) { // before the password: whoever is not listed can not try any
		h.o.Logger.Warn("a change was refused because http_allowlist does not have the address", "from", r.RemoteAddr, "method", r.Method, "path", r.URL.Path)
		refused(w, r, refuse(http.StatusForbidden, "the address %s may not change anything here: it is not in http_allowlist", r.RemoteAddr))
		return false
	}
	why, code := h.known(r)
	if why == "" {
		return true
	}
	if code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="repmgr"`)
	}
	refused(w, r, refuse(code, "%s", why))
	return false
}

// listed reports whether the address of a client is one that may change something. One that can not be read is not listed.
func (h *handler) listed(r *http.Request) bool {
	allowed := h.o.Allowlist
	if h.o.Cluster != nil && len(allowed) == 0 {
		allowed = h.o.Cluster().Config().HTTPAllowlist
	}
	if len(allowed) == 0 {
		return true
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return within(p, from.Addr()) })
}

// within reports whether a network has an address. An IPv4 address is the same one where it is written as IPv6, as a socket for
// both shows it.
func within(p netip.Prefix, a netip.Addr) bool {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Contains(a.Unmap().WithZone(""))
}
