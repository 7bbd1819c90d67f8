package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// StartPooler runs a PgBouncer before the server, in that pool_mode ("session",
// "transaction"), which ignores the startup parameters of those names. It returns
// the conninfo through it. Where there is no PgBouncer the test is skipped.
func StartPooler(t testing.TB, s *Server, mode string, ignored ...string) (conninfo string) {
	t.Helper()
	path, err := Program("pgbouncer")
	if err != nil {
		t.Skip("pgtest: no pgbouncer: install the package pgbouncer (scripts/deps does)")
	}
	dir, port := t.TempDir(), Port(t)
	config := fmt.Sprintf("[databases]\npostgres = host=127.0.0.1 port=%d dbname=postgres user=postgres\n"+
		"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = %s\nignore_startup_parameters = %s\n",
		s.Port, port, mode, strings.Join(ignored, ", "))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	serve(t, "pgbouncer", dir, port, path, file)
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", port)
}
