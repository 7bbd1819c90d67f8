package clone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/datadir"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
	"github.com/pgrepmgr/repmgr/wal"
)

// Rsync copies as repmgr's manual describes: a session begins a backup, rsync over ssh copies
// the files of the running server, and the session ends the backup and says which WAL belongs
// to it. It needs rsync on both machines and an ssh login without a password; the login to
// PostgreSQL must be allowed to run a backup.
type Rsync struct {
	Options    string // of rsync. Empty: those that serve best.
	SSHOptions string
}

// rsyncExclude are the files that belong to the running server and not to its data: in a copy they
// would be wrong, or the server makes them again when it starts. pg_control and the WAL are copied
// separately, at the end.
var rsyncExclude = []string{
	"/postmaster.pid", "/postmaster.opts", "/standby.signal", "/recovery.signal", "/backup_label", "/backup_label.old",
	"/tablespace_map", "/tablespace_map.old", "/backup_manifest", "/current_logfiles", "/postgresql.auto.conf.tmp", "/" + datadir.StagingName,
	"/pg_wal/*", "/pg_replslot/*", "/pg_dynshmem/*", "/pg_notify/*", "/pg_serial/*", "/pg_snapshots/*", "/pg_stat_tmp/*", "/pg_subtrans/*",
	"/pg_tblspc/*", "/global/pg_control", "pgsql_tmp*", "pg_internal.init*",
}

const (
	rsyncVanished = 24               // a file was removed while it was copied; replaying the WAL corrects that
	stopTimeout   = 30 * time.Second // for ending a backup whose caller has given up

	sshCheckTimeout = 20 * time.Second
)

// Check tests the way to copy before anything is deleted or changed.
func (r Rsync) Check(ctx context.Context, source, remoteUser string) error {
	if _, err := exec.LookPath("rsync"); err != nil {
		return errors.New("rsync is not installed here (Debian: apt-get install rsync)")
	}
	from, err := rsyncHost(source, remoteUser)
	if err != nil || from == "" {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, sshCheckTimeout, fmt.Errorf("no answer within %s", sshCheckTimeout))
	defer cancel()
	host := strings.NewReplacer("[", "", "]", "").Replace(strings.TrimSuffix(from, ":"))
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "exec "+shell.SSH(r.SSHOptions)+` "$@"`, "ssh", "--", host, "rsync --version")
	cmd.WaitDelay = time.Second
	shell.EndWithGroup(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("this must work without a password: %s %s rsync --version (%w: %s)", shell.SSH(r.SSHOptions), host, err, shell.LastLines(out, 2))
	}
	return nil
}

// Copy makes the copy.
func (r Rsync) Copy(ctx context.Context, job Job) error {
	from, err := r.remote(job)
	if err != nil {
		return err
	}
	n, err := registry.Connect(ctx, "", job.Source)
	if err != nil {
		return err
	}
	defer n.Close() // ends the backup, and a temporary slot with it
	b := rsyncBackup{Rsync: r, job: job, n: n, from: from}
	job.Progress(PhaseCheckpoint, 0, 0)
	if err := b.begin(ctx); err != nil {
		return err
	}
	job.Progress("copying", 0, 0)
	if err := b.data(ctx); err != nil {
		return err
	}
	return b.end(ctx)
}

// remote is the source as rsync names it: user@host:, or nothing for a source
// that is reached through a socket of this machine.
func (r Rsync) remote(job Job) (string, error) {
	if job.Status.Settings.DataDirectory == "" {
		return "", failure.WithHint(errors.New("this login may not read the source's data_directory"), "Connect as a superuser, or GRANT pg_read_all_settings to the login.")
	}
	return rsyncHost(job.Source, job.RemoteUser)
}

func rsyncHost(source, user string) (string, error) {
	params, err := conninfo.Parse(source)
	if err != nil {
		return "", err
	}
	host := params["host"]
	switch {
	case host == "":
		host = params["hostaddr"]
	case strings.HasPrefix(host, "/"):
		return "", nil
	}
	if host == "" {
		return "", nil
	}
	if strings.HasPrefix(host, "-") || strings.ContainsAny(host, "@ ,") {
		return "", failure.Of(failure.ErrConfig, "host %q can not be given to rsync: it must be one host name or address", host)
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = "[" + host + "]"
	}
	if user != "" {
		host = user + "@" + host
	}
	return host + ":", nil
}

// rsyncBackup is one copy.
type rsyncBackup struct {
	Rsync
	job   Job
	n     *registry.Server
	from  string
	start wal.LSN
}

// old reports whether the server has the function names of before 15.
func (b *rsyncBackup) old() bool { return b.job.Status.VersionNum < 150000 }

// begin makes the source keep the WAL that the copy will need, and begins the backup. Both end
// with the session.
func (b *rsyncBackup) begin(ctx context.Context) error {
	if b.job.Slot == "" {
		slot := fmt.Sprintf("repmgr_clone_%d", b.n.Conn.PgConn().PID())
		if _, err := b.n.Conn.Exec(ctx, `SELECT pg_create_physical_replication_slot($1, true, true)`, slot); err != nil {
			return b.n.QueryError("hold WAL with a temporary slot", err)
		}
	}
	sql := `SELECT pg_backup_start($1, $2)`
	if b.old() {
		sql = `SELECT pg_start_backup($1, $2, false)`
	}
	if err := b.n.Conn.QueryRow(postgres.Unlimited(ctx), sql, b.job.Label, b.job.FastCheckpoint).Scan(&b.start); err != nil {
		return b.n.QueryError("begin a backup", err)
	}
	return nil
}

// data copies the files, tablespaces first, so that pg_tblspc can be made.
func (b *rsyncBackup) data(ctx context.Context) error {
	dir := b.job.Status.Settings.DataDirectory
	exclude := make([]string, 0, len(rsyncExclude))
	for _, e := range rsyncExclude {
		exclude = append(exclude, "--exclude="+e)
	}
	if err := b.rsync(ctx, dir+"/", b.job.Dir+"/", exclude...); err != nil {
		return err
	}
	type space struct{ oid, location string }
	rows, err := b.n.Conn.Query(ctx, `SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''`)
	if err != nil {
		return b.n.QueryError("read the tablespaces", err)
	}
	defer rows.Close()
	var spaces []space
	for rows.Next() {
		var s space
		if err := rows.Scan(&s.oid, &s.location); err != nil {
			return b.n.QueryError("read the tablespaces", err)
		}
		spaces = append(spaces, s)
	}
	if err := rows.Err(); err != nil {
		return b.n.QueryError("read the tablespaces", err)
	}
	for _, s := range spaces {
		to := b.job.Tablespace(s.location)
		if err := b.job.Claim(to); err != nil {
			return err
		}
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		// Only this major version's part of it, named PG_<major>_<catalog>.
		major := fmt.Sprintf("PG_%d_*", b.job.Status.VersionNum/10000)
		if err := b.rsync(ctx, s.location+"/", to+"/", "--include=/"+major, "--exclude=/*", "--exclude=pgsql_tmp*"); err != nil {
			return err
		}
		if err := os.Symlink(to, filepath.Join(b.job.Dir, "pg_tblspc", s.oid)); err != nil {
			return err
		}
	}
	return nil
}

// end ends the backup and fetches what completes it: the WAL from its start to its end, and
// pg_control as the last file.
func (b *rsyncBackup) end(ctx context.Context) error {
	b.job.Progress("ending the backup", 0, 0)
	sql := `SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)`
	if b.old() {
		sql = `SELECT lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)`
	}
	var stop wal.LSN
	var label, spaceMap string
	if err := b.n.Conn.QueryRow(postgres.Unlimited(ctx), sql).Scan(&stop, &label, &spaceMap); err != nil {
		return b.n.QueryError("end the backup", err)
	}
	if err := b.fetchWAL(ctx, stop); err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(b.job.Dir, "backup_label"), []byte(label)); err != nil {
		return err
	}
	if err := b.rsync(ctx, filepath.Join(b.job.Status.Settings.DataDirectory, "global", "pg_control"), filepath.Join(b.job.Dir, "global")+"/"); err != nil {
		return err
	}
	b.job.Progress("syncing", 0, 0)
	return exec.CommandContext(ctx, "sync", "--file-system", b.job.Dir).Run()
}

// fetchWAL copies the segments of the backup and the timeline's history.
func (b *rsyncBackup) fetchWAL(ctx context.Context, stop wal.LSN) error {
	size, err := b.n.WALSegmentSize(ctx)
	if err != nil {
		return err
	}
	tli := b.job.Status.Timeline
	args := []string{"--include=/" + wal.HistoryFileName(tli)}
	for lsn := b.start; ; lsn += wal.LSN(size) {
		args = append(args, "--include=/"+wal.SegmentName(tli, lsn, size))
		if wal.SegmentName(tli, lsn, size) == wal.SegmentName(tli, stop-1, size) || lsn > stop {
			break
		}
	}
	args = append(args, "--exclude=*")
	return b.rsync(ctx, filepath.Join(b.job.Status.Settings.DataDirectory, "pg_wal")+"/", filepath.Join(b.job.Dir, "pg_wal")+"/", args...)
}

// rsync copies with the configuration's options. The options are the user's own
// words to a shell; paths are never part of them.
func (b *rsyncBackup) rsync(ctx context.Context, from, to string, args ...string) error {
	options := b.Options
	if options == "" {
		options = "--archive --whole-file"
	}
	words := []string{"-c", `exec rsync ` + options + ` "$@"`, "rsync"}
	if b.from != "" {
		words = append(words, "--timeout=60", "--rsh="+shell.SSH(b.SSHOptions))
	}
	words = append(words, args...)
	words = append(words, "--protect-args", "--", b.from+from, to)
	b.job.Log("running rsync", slog.String("from", b.from+from), slog.String("to", to))
	cmd := exec.CommandContext(ctx, "/bin/sh", words...)
	cmd.WaitDelay = stopTimeout
	shell.EndWithGroup(cmd)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil, errors.As(err, &exit) && exit.ExitCode() == rsyncVanished:
		return nil
	case errors.As(err, &exit) && (exit.ExitCode() == 255 || exit.ExitCode() == 12):
		return failure.WithHint(fmt.Errorf("rsync from %s: %s", cmp.Or(strings.TrimSuffix(b.from, ":"), "this machine"), shell.LastLines(out, 3)),
			"This must work without a password, as this OS user: %s %s true", shell.SSH(b.SSHOptions), strings.TrimSuffix(b.from, ":"))
	case errors.As(err, &exit) && exit.ExitCode() == 127:
		return failure.WithHint(errors.New("rsync is not installed here"), "Install it (Debian: apt-get install rsync), or clone with --method=basebackup.")
	default:
		return fmt.Errorf("rsync: %w: %s", err, shell.LastLines(out, 3))
	}
}
