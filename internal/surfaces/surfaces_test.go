package surfaces

import (
	"testing"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
)

func TestMain(m *testing.M) { daemontest.Main(m) }
