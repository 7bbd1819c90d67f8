package chaos

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Suite is the repmgr under test: its programs, and what its users write into
// the configuration files.
type Suite struct {
	Name            string   // in the report
	Repmgr, Repmgrd string   // programs
	Settings        []string // lines for postgresql.conf
	Peer            bool     // repmgr 5: has commands for promote and follow, and does not rejoin
	Extra           []string // lines for repmgr.conf
}

// Ours is the repmgr of this project, from dir. The only setting besides
// failover=automatic is failovers_per_hour: a run has more failovers in an hour
// than any cluster should.
func Ours(dir string) Suite {
	return Suite{
		Name: "ours", Repmgr: filepath.Join(dir, "repmgr"), Repmgrd: filepath.Join(dir, "repmgrd"),
		Extra: []string{"cluster=chaos", "failover=automatic", "failovers_per_hour=-1"},
	}
}

// Peer is repmgr 5 of the PostgreSQL in binDir: with its defaults, or tuned to
// be as quick as its settings allow.
func Peer(binDir string, tuned bool) Suite {
	s := Suite{
		Name: "repmgr 5 default", Repmgr: filepath.Join(binDir, "repmgr"), Repmgrd: filepath.Join(binDir, "repmgrd"), Peer: true,
		Settings: []string{"shared_preload_libraries = 'repmgr'"},
		Extra:    []string{"failover=automatic"},
	}
	if tuned {
		s.Name = "repmgr 5 tuned"
		s.Extra = append(s.Extra, "reconnect_attempts=1", "reconnect_interval=1", "monitor_interval_secs=1")
	}
	return s
}

// Missing says which program is not there, or nil.
func (s Suite) Missing() error {
	for _, program := range []string{s.Repmgr, s.Repmgrd} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("find %s: %w", s.Name, err)
		}
	}
	return nil
}

// version is what the program says of itself.
func (s Suite) version() string {
	out, err := exec.Command(s.Repmgr, "--version").Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// conf is a node's repmgr.conf.
func (s Suite) conf(n *node) string {
	lines := []string{
		fmt.Sprintf("node_id=%d", n.id),
		fmt.Sprintf("node_name='%s'", n.name()),
		fmt.Sprintf("conninfo='%s'", n.conninfo("repmgr", "repmgr")+" connect_timeout=2"),
		fmt.Sprintf("data_directory='%s'", n.data()),
		fmt.Sprintf("pg_bindir='%s'", n.c.o.BinDir),
	}
	if s.Peer {
		lines = append(lines,
			fmt.Sprintf("promote_command='%s standby promote -f %s'", s.Repmgr, n.confFile()),
			fmt.Sprintf("follow_command='%s standby follow -f %s --upstream-node-id=%%n'", s.Repmgr, n.confFile()))
	}
	lines = append(lines, s.Extra...)
	lines = append(lines, n.c.confLines...)
	return strings.Join(lines, "\n") + "\n"
}

// serverConf is the end of postgresql.conf. Its paths are relative to the data
// directory, so that a clone's or a rewound node's is right as it is.
func (c *cluster) serverConf() string {
	lines := []string{
		"listen_addresses = '*'", "unix_socket_directories = '../..'",
		"max_connections = " + strconv.Itoa(maxConnections), "shared_buffers = 32MB", "huge_pages = off", "jit = off",
		"dynamic_shared_memory_type = mmap", "wal_keep_size = 256MB", "max_wal_size = 512MB", "max_wal_senders = 12",
		"timezone = UTC", "log_timezone = UTC", "lc_messages = C", "log_line_prefix = '%n [%p] '", "log_checkpoints = off",
		"logging_collector = on", "log_directory = '../../log'", "log_filename = 'server.log'", "log_file_mode = 0644",
		"log_rotation_age = 0", "log_rotation_size = 0",
	}
	if !c.o.Suite.Peer { // what a nemesis needs in a node's configuration; an archive has to be there from the start
		lines = append(lines, "archive_mode = on", "archive_command = '/bin/true'", "include = '../../chaos.conf'")
	}
	return "\n" + strings.Join(append(lines, c.o.Suite.Settings...), "\n") + "\n"
}

// maxConnections of each server: few, so that they are soon used up.
const maxConnections = 60
