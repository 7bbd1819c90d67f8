package pgtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// EtcdOptions say how an etcd differs from the usual one: a single member,
// without TLS, with etcd's own defaults.
type EtcdOptions struct {
	Members int  // Defaults to 1.
	TLS     bool // clients need a certificate of the throwaway CA, and see one
}

// Etcd is a real etcd on 127.0.0.1. It is ended when its test ends, and its log
// is shown if the test failed. Not safe for concurrent use.
type Etcd struct {
	Members []*EtcdMember

	// With TLS, the files of the CA, and of a certificate for clients and its key.
	CACert, Cert, Key string
}

// EtcdMember is one process of an etcd.
type EtcdMember struct {
	Name string
	Port int // for clients
	Dir  string

	t      testing.TB
	args   []string
	client *http.Client
	url    string // for clients
	cmd    *exec.Cmd
	ended  <-chan struct{} // closed when it has ended and is reaped; nil before the first start
}

// StartEtcd starts an etcd of one member and waits until it answers. It skips
// the test when there is no etcd.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	return StartEtcdWith(t, EtcdOptions{})
}

// StartEtcdWith starts an etcd and waits until each member answers. It skips
// the test when there is no etcd.
func StartEtcdWith(t testing.TB, o EtcdOptions) *Etcd {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("pgtest: no etcd: install the package etcd-server (scripts/deps does)")
	}
	dir := t.TempDir()
	e, client, scheme := &Etcd{}, http.DefaultClient, "http"
	var security []string
	if o.TLS {
		security, client, scheme = e.makeCertificates(t, dir), &http.Client{}, "https"
		client.Transport = &http.Transport{TLSClientConfig: e.tlsConfig(t)}
	}
	token := filepath.Base(filepath.Dir(dir)) + strconv.Itoa(Port(t)) // no other etcd here has it
	var peers []string
	for i := range max(1, o.Members) {
		name := fmt.Sprintf("etcd%d", i+1)
		m := &EtcdMember{Name: name, Port: Port(t), Dir: filepath.Join(dir, name), t: t, client: client}
		m.url = fmt.Sprintf("%s://127.0.0.1:%d", scheme, m.Port)
		peer := fmt.Sprintf("http://127.0.0.1:%d", Port(t))
		peers = append(peers, name+"="+peer)
		m.args = append([]string{
			path, "--name", name, "--data-dir", m.Dir, "--logger", "zap", "--log-level", "warn",
			"--listen-client-urls", m.url, "--advertise-client-urls", m.url,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster-token", token, "--initial-cluster-state", "new",
		}, security...)
		e.Members = append(e.Members, m)
	}
	for _, m := range e.Members {
		m.args = append(m.args, "--initial-cluster", strings.Join(peers, ","))
		m.start()
	}
	for _, m := range e.Members {
		m.await()
	}
	return e
}

// Endpoints are the members' addresses, as etcd_endpoints wants them.
func (e *Etcd) Endpoints() string {
	var all []string
	for _, m := range e.Members {
		all = append(all, m.url)
	}
	return strings.Join(all, ",")
}

// Kill ends all members at once, by SIGKILL.
func (e *Etcd) Kill() {
	for _, m := range e.Members {
		m.Kill()
	}
}

// StartAgain starts all members again, on what they had stored, and waits until
// they answer.
func (e *Etcd) StartAgain() {
	e.Members[0].t.Helper()
	for _, m := range e.Members {
		m.start()
	}
	for _, m := range e.Members {
		m.await()
	}
}

// Kill ends the member by SIGKILL and waits until it has ended.
func (m *EtcdMember) Kill() {
	_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
	<-m.ended
}

// Stop freezes the member: its connections stay, and nothing answers.
func (m *EtcdMember) Stop() { stop(m.cmd.Process.Pid) }

// Continue lets a frozen member go on.
func (m *EtcdMember) Continue() { _ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGCONT) }

// StartAgain starts the member again and waits until it answers.
func (m *EtcdMember) StartAgain() {
	m.t.Helper()
	m.start()
	m.await()
}

func (m *EtcdMember) start() {
	m.t.Helper()
	log, err := os.OpenFile(m.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatalf("pgtest: start %s: %v", m.Name, err)
	}
	defer log.Close()
	first := m.ended == nil
	m.cmd = exec.Command(m.args[0], m.args[1:]...)
	m.cmd.Dir, m.cmd.Stdout, m.cmd.Stderr = filepath.Dir(m.Dir), log, log
	if m.ended, err = startTied(m.cmd, syscall.SIGKILL); err != nil {
		m.t.Fatalf("pgtest: start %s: %v", m.Name, err)
	}
	if first {
		m.t.Cleanup(func() {
			m.Kill() // a frozen one too
			if m.t.Failed() {
				text, _ := os.ReadFile(log.Name())
				m.t.Logf("log of %s:\n%s", m.Name, tail(string(text), 50))
			}
		})
	}
}

// await waits until the member is healthy: it has a leader and can write.
func (m *EtcdMember) await() {
	m.t.Helper()
	err := poll(patience(), func(ctx context.Context) error {
		select {
		case <-m.ended:
			text, _ := os.ReadFile(m.Dir + ".log")
			return final{fmt.Errorf("it ended: %s", tail(string(text), 20))}
		default:
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+"/health", nil)
		if err != nil {
			return err
		}
		res, err := m.client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && !bytes.Contains(body, []byte(`"true"`)) {
			err = fmt.Errorf("it is not healthy: %s", body)
		}
		return err
	})
	if err != nil {
		m.t.Fatalf("pgtest: start %s: %v", m.Name, err)
	}
	m.client.CloseIdleConnections()
}

// makeCertificates makes a CA, and one certificate each for the members and
// their clients. It returns the options of etcd that use them.
func (e *Etcd) makeCertificates(t testing.TB, dir string) (options []string) {
	t.Helper()
	issue := func(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatalf("pgtest: make key: %v", err)
		}
		template.Subject = pkix.Name{CommonName: name}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		cert, errParse := x509.ParseCertificate(der)
		private, errKey := x509.MarshalECPrivateKey(key)
		err = errors.Join(err, errParse, errKey,
			os.WriteFile(filepath.Join(dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
			os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600))
		if err != nil {
			t.Fatalf("pgtest: make certificate: %v", err)
		}
		return cert, key
	}
	ca, key := issue("ca", &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	// The gateway of etcd is a client of its own server.
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	issue("server", &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: both}, ca, key)
	issue("client", &x509.Certificate{SerialNumber: big.NewInt(3), ExtKeyUsage: both[1:]}, ca, key)
	e.CACert, e.Cert, e.Key = dir+"/ca.crt", dir+"/client.crt", dir+"/client.key"
	return []string{"--client-cert-auth", "--trusted-ca-file", e.CACert, "--cert-file", dir + "/server.crt", "--key-file", dir + "/server.key"}
}

func (e *Etcd) tlsConfig(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(e.Cert, e.Key)
	text, errRead := os.ReadFile(e.CACert)
	if err := errors.Join(err, errRead); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
}
