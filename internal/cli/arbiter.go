package cli

import (
	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/etcd"
)

// OpenArbiter gives cfg the etcd that its keys etcd_* name, if they name one.
// It is connected to when it is first asked; shut ends that.
func OpenArbiter(cfg *repmgr.Config) (shut func(), err error) {
	if cfg.EtcdEndpoints == "" {
		return func() {}, nil
	}
	arbiter, err := etcd.New(*cfg)
	if err != nil {
		return nil, err
	}
	cfg.Arbiter = arbiter
	return func() { _ = arbiter.Close() }, nil
}
