package etcd

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pgrepmgr/repmgr"
)

// prefix is what the keys of the cluster begin with.
func prefix(cfg repmgr.Config) string {
	return cmp.Or(cfg.EtcdPrefix, repmgr.DefaultEtcdPrefix) + cfg.ClusterName + "/"
}

// settings reads the keys etcd_*, and returns all that is wrong with them.
// Endpoints without a scheme use TLS if any certificate is set. Relative paths
// are relative to the configuration file.
func settings(cfg repmgr.Config) (addresses []string, security *tls.Config, err error) {
	for _, path := range []*string{&cfg.EtcdCACert, &cfg.EtcdCert, &cfg.EtcdKey} {
		if *path != "" && cfg.File != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(filepath.Dir(cfg.File), *path)
		}
	}
	var faults []repmgr.Fault
	fault := func(key, value, problem, remedy string) {
		faults = append(faults, repmgr.Fault{File: cfg.File, Key: key, Value: value, Problem: problem, Remedy: remedy})
	}
	if cfg.ClusterName == "" {
		fault("cluster", "", "must be set where an etcd votes: its keys begin with it", "Give the cluster a name, the same on all its nodes.")
	}
	scheme := "http"
	if cfg.EtcdCACert != "" || cfg.EtcdCert != "" || cfg.EtcdKey != "" {
		scheme = "https"
	}
	first := "" // of the addresses, with its scheme
	for part := range strings.SplitSeq(cfg.EtcdEndpoints, ",") {
		u, problem := endpoint(strings.TrimSpace(part), scheme)
		switch {
		case problem != "":
			fault("etcd_endpoints", withoutPassword(part), problem, "Write host:port, or https://host:port, with commas between them.")
			continue
		case first == "":
			first, scheme = u.String(), u.Scheme
		case u.Scheme != scheme:
			fault("etcd_endpoints", u.String(), fmt.Sprintf("can not be used beside %q: either all use TLS or none", first), "")
		}
		addresses = append(addresses, u.Host)
	}
	for _, set := range []struct{ key, value string }{{"etcd_cacert", cfg.EtcdCACert}, {"etcd_cert", cfg.EtcdCert}, {"etcd_key", cfg.EtcdKey}} {
		if set.value != "" && first != "" && scheme == "http" {
			fault(set.key, set.value, fmt.Sprintf("can not be used with \"etcd_endpoints\" = %q, which is without TLS", first), "Write https:// there, or leave the scheme away.")
		}
	}
	if scheme == "https" {
		security = tlsConfig(cfg, fault)
	}
	if len(faults) > 0 {
		return nil, nil, &repmgr.ConfigError{Faults: faults}
	}
	return addresses, security, nil
}

// endpoint reads one, or says what is wrong with it.
func endpoint(s, scheme string) (u *url.URL, problem string) {
	if s == "" {
		return nil, "has an empty address"
	}
	if !strings.Contains(s, "://") {
		s = scheme + "://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, "is not an address"
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, "has another scheme than http or https"
	case u.User != nil:
		return nil, "holds a user name: etcd is to know us by etcd_cert"
	case u.Hostname() == "":
		return nil, "has no host"
	case u.Port() == "":
		return nil, "has no port: etcd's is 2379"
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, "has more than a host and a port"
	}
	return u, ""
}

// withoutPassword is an address that can be shown: what stands before an @ may be secret.
func withoutPassword(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.LastIndex(s, "@"); i >= 0 {
		return "***" + s[i:]
	}
	return s
}

// tlsConfig makes the TLS of etcd_cacert, etcd_cert and etcd_key. The
// certificate is read again for each connection: it may be replaced at any time.
func tlsConfig(cfg repmgr.Config, fault func(key, value, problem, remedy string)) *tls.Config {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.EtcdCACert != "" {
		pem, err := os.ReadFile(cfg.EtcdCACert)
		t.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			fault("etcd_cacert", cfg.EtcdCACert, "can not be read: "+cause(err), "")
		case !t.RootCAs.AppendCertsFromPEM(pem):
			fault("etcd_cacert", cfg.EtcdCACert, "holds no certificate", "Name a file in PEM form.")
		}
	}
	switch {
	case cfg.EtcdCert == "" && cfg.EtcdKey == "":
	case cfg.EtcdKey == "":
		fault("etcd_cert", cfg.EtcdCert, `needs also "etcd_key" = ""`, "Set both, or neither.")
	case cfg.EtcdCert == "":
		fault("etcd_key", cfg.EtcdKey, `needs also "etcd_cert" = ""`, "Set both, or neither.")
	default:
		if _, err := tls.LoadX509KeyPair(cfg.EtcdCert, cfg.EtcdKey); err != nil {
			fault("etcd_cert", cfg.EtcdCert, fmt.Sprintf("can not be used with \"etcd_key\" = %q: %s", cfg.EtcdKey, cause(err)), "")
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.EtcdCert, cfg.EtcdKey)
			return &pair, err
		}
	}
	return t
}

// cause leaves the name of the file out of err.
func cause(err error) string {
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		err = file.Err
	}
	return err.Error()
}
