package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

const (
	cloning     = "6. Clone of 2 GB on this machine, everything cached, ours and pg_basebackup with their fsync"
	cloneScale  = 135 // of pgbench: 2 GB
	cloneRounds = 5
)

// copying is one way to copy the data directory, and what it took each round.
type copying struct {
	name    string
	command func(dir string) []string

	seconds, cpu, server, memory stat
}

// TestClone copies 2 GB in every way in turn, each copy removed before the next.
func TestClone(t *testing.T) {
	wanted(t)
	source := start(t, pgtest.Options{Name: "source", Settings: map[string]string{"max_wal_size": "4GB", "checkpoint_timeout": "1h"}})
	pgbench := filepath.Join(source.BinDir, "pgbench")
	pgtest.NeedPrograms(t, "pgbench")
	r := measure(t, pgbench, "-i", "-q", "-s", fmt.Sprint(cloneScale), "-h", source.SocketDir, "-p", fmt.Sprint(source.Port), "-U", "postgres", "postgres")
	require.Zero(t, r.code, r.out)
	source.Exec(t, `CHECKPOINT`)
	s := ours(t)
	s.register(t, source)
	sshd := pgtest.StartSSHD(t)
	clone := func(conf string) func(string) []string {
		return func(dir string) []string {
			return []string{s.repmgr, "-f", conf, "standby", "clone", "-h", "127.0.0.1", "-p", fmt.Sprint(source.Port), "-U", "postgres", "-d", "postgres", "-D", dir, "-c"}
		}
	}
	to := &pgtest.Server{Port: pgtest.Port(t), BinDir: source.BinDir} // it never runs
	native := clone(s.conf(t, 2, to))
	rsync := clone(s.conf(t, 2, to, "clone_method=rsync", "ssh_options='"+strings.Join(sshd.Options, " ")+"'"))

	cold := filepath.Join(t.TempDir(), "cold")
	baseBackup := func(dir string) []string {
		return []string{filepath.Join(source.BinDir, "pg_basebackup"), "-h", "127.0.0.1", "-p", fmt.Sprint(source.Port), "-U", "postgres", "-D", dir, "-X", "stream", "-c", "fast"}
	}
	first := baseBackup(cold)
	r = measure(t, first[0], first[1:]...)
	require.Zero(t, r.code, r.out)
	rsyncArgs := []string{"rsync", "-a", "--whole-file"}
	ways := map[string]*copying{}
	order := []*copying{
		{name: "ours", command: native},
		{name: "pg_basebackup -X stream", command: baseBackup},
		{name: "cp -r --sparse=never", command: func(dir string) []string { return []string{"cp", "-r", "--sparse=never", "--reflink=never", cold, dir} }},
		{name: "cp -r, then sync -f", command: func(dir string) []string {
			return []string{"sh", "-c", `cp -r --sparse=never --reflink=never "$1" "$2" && sync -f "$2"`, "sh", cold, dir}
		}},
		{name: "rsync -a --whole-file", command: func(dir string) []string { return append(rsyncArgs, cold+"/", dir) }},
		{name: "ours, clone_method=rsync", command: rsync},
		{name: "rsync -a over ssh", command: func(dir string) []string {
			return append(rsyncArgs, "-e", sshd.SSHCommand(), "127.0.0.1:"+cold+"/", dir)
		}},
	}
	for _, w := range order {
		ways[w.name] = w
	}
	// The first to fill memory that this machine has not touched yet pays for it.
	unused := *ways["cp -r --sparse=never"]
	unused.measure(t, source)
	for round := range cloneRounds {
		for i := range order {
			w := order[(i+round)%len(order)] // nobody is always the first, or always after the same one
			w.measure(t, source)
		}
	}
	report(ways)
}

func (w *copying) measure(t *testing.T, source *pgtest.Server) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	syscall.Sync() // what the one before left to write is not this one's work
	before := serverCPU(t, source)
	args := w.command(dir)
	r := measure(t, args[0], args[1:]...)
	require.Zero(t, r.code, "%s: %s", w.name, r.out)
	server := serverCPU(t, source) - before
	require.FileExists(t, filepath.Join(dir, "global", "pg_control"))
	out, err := exec.Command("du", "-sm", dir).Output()
	require.NoError(t, err)
	var size int
	_, err = fmt.Sscan(string(out), &size)
	require.NoError(t, err)
	require.Greater(t, size, 1900, "%s copied too little", w.name)
	require.NoError(t, os.RemoveAll(dir))
	w.seconds.Samples = append(w.seconds.Samples, r.wall.Seconds())
	w.cpu.Samples = append(w.cpu.Samples, r.cpu.Seconds())
	w.server.Samples = append(w.server.Samples, server.Seconds())
	w.memory.Samples = append(w.memory.Samples, mebibytes(r.memory))
	fmt.Fprintf(os.Stderr, "          %-26s %6.2f s, client CPU %.2f s\n", w.name, r.wall.Seconds(), r.cpu.Seconds())
}

func report(ways map[string]*copying) {
	our := ways["ours"]
	for _, peer := range []struct {
		name  string
		bound limit
	}{
		{"pg_basebackup -X stream", limit{Times: 1}},
		{"cp -r --sparse=never", limit{Times: 1.5}},
		{"cp -r, then sync -f", limit{Times: 1.5}}, // the like of ours: on disk when it ends
		{"rsync -a --whole-file", limit{}},
	} {
		results.add(figure{Section: cloning, What: "standby clone", Unit: "s", Peer: peer.name, Theirs: ways[peer.name].seconds, Ours: our.seconds, Limit: peer.bound})
	}
	base := ways["pg_basebackup -X stream"]
	over, plain := ways["ours, clone_method=rsync"], ways["rsync -a over ssh"]
	for _, f := range []figure{
		{What: "standby clone, clone_method=rsync", Unit: "s", Peer: plain.name, Theirs: plain.seconds, Ours: over.seconds},
		{What: "standby clone: CPU of the client", Unit: "s", Peer: base.name, Theirs: base.cpu, Ours: our.cpu, Limit: limit{Times: 1}},
		{What: "standby clone: CPU of the client", Unit: "s", Peer: "rsync -a --whole-file", Theirs: ways["rsync -a --whole-file"].cpu, Ours: our.cpu},
		{What: "standby clone: CPU of the server", Unit: "s", Peer: base.name, Theirs: base.server, Ours: our.server},
		{What: "standby clone: resident memory at most", Unit: "MB", Peer: base.name, Theirs: base.memory, Ours: our.memory, Limit: limit{Value: 64}},
	} {
		f.Section = cloning
		results.add(f)
	}
}
