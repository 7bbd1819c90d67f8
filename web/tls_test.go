package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/health"
)

// issue writes a certificate that signs itself, and its key.
func issue(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	require.NoError(t, err)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return cert, key
}

// A certificate is replaced while the server runs; one that can not be read does not end the one in force. A client
// with a certificate may change something, one with another certificate may not even connect.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := issue(t, dir, "first")
	clientCert, clientKey := issue(t, t.TempDir(), "client")
	strangerCert, strangerKey := issue(t, t.TempDir(), "stranger")
	c, err := repmgr.New(repmgr.Config{NodeID: 1, Conninfo: "host=127.0.0.1 port=1 dbname=none user=none"})
	require.NoError(t, err)
	look := func() health.View { v := view(1); v.At = time.Now(); v.LookedAt = v.At; return v }
	at := listen(t, &Server{Cert: cert, Key: key, ClientCA: clientCert, Handler: newHandler(look, Options{Cluster: func() *repmgr.Cluster { return c }})})

	ask := func(method string, own ...string) (name string, code int, err error) {
		config := &tls.Config{InsecureSkipVerify: true} // the name is compared below
		if len(own) > 0 {
			pair, err := tls.LoadX509KeyPair(own[0], own[1])
			require.NoError(t, err)
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil } // whether or not the server knows its authority
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 20 * time.Second}
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+at+"/switchover", strings.NewReader("{}"))
		require.NoError(t, err)
		res, err := client.Do(r)
		if err != nil {
			return "", 0, err
		}
		defer res.Body.Close()
		return res.TLS.PeerCertificates[0].Subject.CommonName, res.StatusCode, nil
	}
	name, code, err := ask("POST")
	require.NoError(t, err)
	require.Equal(t, []any{"first", http.StatusForbidden}, []any{name, code})
	_, code, err = ask("POST", clientCert, clientKey)
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, code) // it may, and has named no leader
	_, _, err = ask("GET", strangerCert, strangerKey)
	require.Error(t, err)

	require.NoError(t, os.WriteFile(cert, []byte("nonsense"), 0o600))
	name, _, err = ask("POST")
	require.NoError(t, err)
	require.Equal(t, "first", name)
	issue(t, dir, "second")
	require.Eventually(t, func() bool {
		name, _, err = ask("POST")
		return err == nil && name == "second"
	}, 20*time.Second, time.Millisecond)

	require.ErrorContains(t, (&Server{Cert: cert, Key: clientKey}).Serve(t.Context(), nil), "private key does not match")
	require.ErrorContains(t, (&Server{Cert: cert, Key: key, ClientCA: key}).Serve(t.Context(), nil), "no certificate in it")
	require.ErrorContains(t, (&Server{Listen: strings.TrimPrefix(at, "x"), Handler: http.NotFoundHandler()}).Serve(t.Context(), nil), "address already in use")
}

// A connection that outlives the authority of its certificate loses what that allows.
func TestClientCertificateOfAFormerAuthority(t *testing.T) {
	t.Parallel()
	dir, clients := t.TempDir(), t.TempDir()
	cert, key := issue(t, dir, "server")
	clientCert, clientKey := issue(t, clients, "client")
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	require.NoError(t, err)
	c, err := repmgr.New(repmgr.Config{NodeID: 1, Conninfo: "host=127.0.0.1 port=1 dbname=none user=none"})
	require.NoError(t, err)
	v := view(1)
	at := listen(t, &Server{Cert: cert, Key: key, ClientCA: clientCert, Handler: newHandler(func() health.View { return later(v) }, Options{Cluster: func() *repmgr.Cluster { return c }})})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}}, Timeout: 20 * time.Second}
	ask := func() (code int, closes bool) {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+at+"/switchover", strings.NewReader("{}"))
		require.NoError(t, err)
		res, err := client.Do(r)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, res.Close
	}
	for range 2 {
		code, closes := ask()
		require.Equal(t, []any{http.StatusBadRequest, false}, []any{code, closes})
	}
	issue(t, clients, "another authority")
	code, closes := ask()
	require.Equal(t, []any{http.StatusForbidden, true}, []any{code, closes})
}
