package chaos

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// etcdServer is the arbiter of two data nodes: one etcd on a machine of its own.
type etcdServer struct {
	c     *cluster
	m     *machine
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
}

const etcdName = "etcd"

func newEtcd(c *cluster) (*etcdServer, error) {
	m, err := c.machine(etcdName, 90)
	if err != nil {
		return nil, err
	}
	e := &etcdServer{c: c, m: m, dir: filepath.Join(c.o.Dir, etcdName)}
	c.confLines = append(c.confLines, "etcd_endpoints='"+e.url()+"'")
	return e, nil
}

func (e *etcdServer) url() string { return "http://" + e.m.ip + ":2379" }

// start starts it with no data, and waits until it answers.
func (e *etcdServer) start(ctx context.Context) error {
	e.kill()
	if err := os.RemoveAll(e.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return err
	}
	return e.launch(ctx)
}

// launch starts it with the data that it had.
func (e *etcdServer) launch(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("etcd", "--name=arbiter", "--data-dir="+filepath.Join(e.dir, "data"), "--unsafe-no-fsync",
		"--listen-client-urls="+e.url()+",http://127.0.0.1:2379", "--advertise-client-urls="+e.url(),
		"--listen-peer-urls=http://127.0.0.1:2380")
	cmd.Env = append(e.c.env, "HOME="+e.dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := e.m.start(cmd, nil); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	e.cmd, e.ended = cmd, make(chan struct{})
	go func() { _ = cmd.Wait(); close(e.ended) }()
	client := http.Client{Transport: &http.Transport{DialContext: e.m.dial, DisableKeepAlives: true}, Timeout: time.Second}
	return waitFor(ctx, 20*time.Second, "etcd to be healthy", func(context.Context) error {
		r, err := client.Get(e.url() + "/health")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("etcd says %s", r.Status)
		}
		return nil
	})
}

func (e *etcdServer) kill() {
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Kill()
	<-e.ended
	e.cmd = nil
}
