package etcd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/etcd"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// Not parallel: it looks at all goroutines of the process.
func TestArbiter_CloseLeavesNothingRunning(t *testing.T) {
	ours := func() string {
		buf := make([]byte, 1<<20)
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "go.etcd.io") || strings.Contains(stack, "google.golang.org/grpc") {
				return stack
			}
		}
		return ""
	}
	require.Empty(t, ours())
	a, err := etcd.New(config(t, pgtest.StartEtcd(t)))
	require.NoError(t, err)
	_, err = a.Look(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, ours())
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())
	// gRPC's goroutines say that they are done just before they end.
	pgtest.WaitFor(t, "the client's goroutines to end", func(context.Context) error {
		if stack := ours(); stack != "" {
			return errors.New(stack)
		}
		return nil
	})
	_, err = a.Look(t.Context())
	require.ErrorIs(t, err, repmgr.ErrConnect)
}

func TestNew_RefusesSettingsThatContradictEachOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for name, c := range map[string]struct {
		change func(*repmgr.Config)
		want   []string
	}{
		"no cluster":              {func(c *repmgr.Config) { c.ClusterName = "" }, []string{`key "cluster": must be set`}},
		"an empty endpoint":       {func(c *repmgr.Config) { c.EtcdEndpoints = "a:1,,b:2" }, []string{"has an empty address"}},
		"no port":                 {func(c *repmgr.Config) { c.EtcdEndpoints = "etcd1" }, []string{`key "etcd_endpoints" = "etcd1": has no port`}},
		"a strange scheme":        {func(c *repmgr.Config) { c.EtcdEndpoints = "unix://x:1" }, []string{"another scheme"}},
		"a path":                  {func(c *repmgr.Config) { c.EtcdEndpoints = "http://a:1/v3" }, []string{"more than a host and a port"}},
		"a password":              {func(c *repmgr.Config) { c.EtcdEndpoints = "http://me:secret@a:1" }, []string{`"***@a:1": holds a user name`}},
		"a password that is none": {func(c *repmgr.Config) { c.EtcdEndpoints = "me:%secret@a:1" }, []string{`"***@a:1"`}},
		"with and without TLS":    {func(c *repmgr.Config) { c.EtcdEndpoints = "http://a:1,https://b:2" }, []string{`"https://b:2": can not be used beside "http://a:1"`}},
		"plain, with a CA": {
			func(c *repmgr.Config) { c.EtcdEndpoints, c.EtcdCACert = "http://a:1", empty },
			[]string{`key "etcd_cacert" = "` + empty + `": can not be used with "etcd_endpoints" = "http://a:1"`},
		},
		"a certificate without key": {func(c *repmgr.Config) { c.EtcdCert = empty }, []string{`key "etcd_cert" = "` + empty + `": needs also "etcd_key" = ""`}},
		"a key without certificate": {func(c *repmgr.Config) { c.EtcdKey = empty }, []string{`key "etcd_key" = "` + empty + `": needs also "etcd_cert" = ""`}},
		"files that are not what they should be": {
			func(c *repmgr.Config) { c.EtcdCACert, c.EtcdCert, c.EtcdKey = empty, empty, "/nowhere" },
			[]string{"holds no certificate", `"etcd_cert" = "` + empty + `": can not be used with "etcd_key" = "/nowhere": no such file`},
		},
		"a missing CA, next to the file": {
			func(c *repmgr.Config) { c.EtcdCACert, c.File = "ca.pem", filepath.Join(dir, "repmgr.conf") },
			[]string{`"` + dir + `/ca.pem": can not be read: no such file`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := repmgr.Config{ClusterName: "test", EtcdEndpoints: "a:1"}
			c.change(&cfg)
			a, err := etcd.New(cfg)
			require.Nil(t, a)
			require.ErrorIs(t, err, repmgr.ErrConfig)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error()+repmgr.Hint(err), "secret")
		})
	}
}
