package repmgr

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/datadir"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/settings"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
)

// A copy needs one WAL sender for the data and one for the WAL meanwhile.
const cloneSenders = 2

// spaceMargin is kept free beside the estimate: WAL that is written meanwhile.
const spaceMargin = 64 << 20

// preflight makes every check before the first change, and names all that fail at once.
func (r *cloning) preflight(ctx context.Context) error {
	if d := r.o.RecoveryMinApplyDelay; d != "" && !settings.IsTime(d) {
		return hint(kind(ErrConfig, "recovery_min_apply_delay %q: must be an integer with a unit (ms, s, min, h, d)", d), "Such as 30min.")
	}
	add := func(name string, ok bool, format string, args ...any) {
		r.res.Checks = append(r.res.Checks, Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)})
	}
	warn := func(name string, ok bool, format string, args ...any) {
		r.res.Checks = append(r.res.Checks, Check{Name: name, OK: ok, Warning: !ok, Detail: fmt.Sprintf(format, args...)})
	}
	s := r.status.Settings
	add("source", true, "%s runs PostgreSQL %s as %s", r.source.Name, r.status.Version, r.status.Role())
	add("wal_level", s.WALLevel == "replica" || s.WALLevel == "logical", "it is %q on the source; replica or logical is needed", s.WALLevel)
	add("max_wal_senders", s.MaxWALSenders-len(r.status.Senders) >= cloneSenders,
		"%d of max_wal_senders = %d are free on the source; cloning needs %d", s.MaxWALSenders-len(r.status.Senders), s.MaxWALSenders, cloneSenders)
	if r.res.Slot != "" {
		add("max_replication_slots", s.MaxSlots > len(r.status.Slots) || hasSlot(r.status.Slots, r.res.Slot),
			"%d of max_replication_slots = %d are used on the source", len(r.status.Slots), s.MaxSlots)
	}
	add("replication connection", true, "%s", "a login for replication is accepted")
	if err := r.tryReplication(ctx); err != nil {
		c := &r.res.Checks[len(r.res.Checks)-1]
		c.OK, c.Detail = false, err.Error()
	}
	r.checkIdentity(add)
	if !r.o.ReplicationConfOnly {
		r.checkDirectories(add, warn)
		if c, ok := r.o.Cloner.(interface {
			check(ctx context.Context, source string, o CloneOptions) error
		}); ok {
			err := c.check(ctx, r.o.Source, r.o)
			add("clone method", err == nil, "%s", cmp.Or(errText(err), "it can be used"))
		}
	}
	if s.HotStandby == "off" {
		warn("hot_standby", false, "hot_standby is off: a standby that takes no connections can not be monitored")
	}
	warn("archiving", s.ArchiveMode == "off" || s.ArchiveCommand != "" && s.ArchiveCommand != "(disabled)", "archive_mode is %q, archive_command is %q", s.ArchiveMode, s.ArchiveCommand)
	if s.DataChecksums == "on" || s.WALLogHints == "on" {
		add("pg_rewind", true, "data_checksums is %s, wal_log_hints is %s", s.DataChecksums, s.WALLogHints)
	} else {
		warn("pg_rewind", false, "neither data checksums nor wal_log_hints are on: a failed primary can not be rewound, only cloned anew")
	}
	if dir := s.DataDirectory; dir != "" && s.ConfigFile != "" {
		if strings.HasPrefix(s.ConfigFile, dir+"/") {
			add("configuration files", true, "they lie in the data directory and are copied with it")
		} else {
			warn("configuration files", false, "the source's configuration is in %s, outside its data directory: it is not copied", filepath.Dir(s.ConfigFile))
		}
	}
	return r.reportChecks()
}

func (r *cloning) reportChecks() error {
	var failed []string
	for _, c := range r.res.Checks {
		switch {
		case c.OK:
			r.log.Debug("check passed", "check", c.Name, "detail", c.Detail)
		case c.Warning:
			r.log.Warn(c.Name + ": " + c.Detail)
		default:
			failed = append(failed, c.Name+": "+c.Detail)
		}
	}
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return hint(kind(r.checkKind(), "can not clone %s: %s", r.source.Name, failed[0]), "%s", r.checkHint())
	default:
		return hint(kind(r.checkKind(), "can not clone %s:\n  - %s", r.source.Name, strings.Join(failed, "\n  - ")), "%s", r.checkHint())
	}
}

// checkKind is ErrDirectory where only the target is at fault.
func (r *cloning) checkKind() error {
	for _, c := range r.res.Checks {
		if !c.OK && !c.Warning && c.Name != "directory" && c.Name != "space" && c.Name != "tablespace" {
			return ErrRefused
		}
	}
	return ErrDirectory
}

// directoryHint says what to do about a directory that can not be cloned into. pid is
// of the server that runs in it; 0: none does. What was tried is not advised.
func directoryHint(cfg Config, dir string, force bool, pid int) string {
	other := "Name another directory with -D"
	if cfg.DataDirectory != "" {
		other = "Change data_directory in " + cfg.File
	}
	switch {
	case pid > 0 && force:
		return fmt.Sprintf("Stop that server first, if it is to be replaced: pg_ctl -D %s stop. Else: %s.", shell.Quote(dir), strings.ToLower(other[:1])+other[1:])
	case pid > 0:
		return fmt.Sprintf("%s; or, if that server is to be replaced, stop it (pg_ctl -D %s stop) and use --force.", other, shell.Quote(dir))
	case force:
		return other + "; or, if nothing in it is needed, remove by hand what it holds. It must belong to the user that runs this."
	}
	return other + "; or, to replace the data directory of a server that is stopped, use --force."
}

func (r *cloning) checkHint() string {
	var hints []string
	for _, c := range r.res.Checks {
		if c.OK || c.Warning {
			continue
		}
		switch c.Name {
		case "wal_level", "max_wal_senders", "max_replication_slots":
			hints = append(hints, fmt.Sprintf("Raise %s in the source's postgresql.conf and restart it.", c.Name))
		case "replication connection":
			hints = append(hints, fmt.Sprintf("Allow it in the source's pg_hba.conf (database replication, user %q), and give the role REPLICATION.", r.sourceReplicationUser()))
		case "directory":
			hints = append(hints, directoryHint(r.cfg, r.o.Dir, r.o.Force, postmaster.PID(r.o.Dir)))
		case "clone method":
			hints = append(hints, "Without ssh and rsync, use --method=basebackup.")
		case "space":
			hints = append(hints, "Free some space, or clone into another file system.")
		case "tablespace":
			hints = append(hints, "Set tablespace_mapping = 'old=new' in repmgr.conf, with a new directory outside of the data directory that is empty or does not exist.")
		case "identity":
			hints = append(hints, "Correct node_id and node_name in repmgr.conf, or unregister the other node.")
		}
	}
	return strings.Join(hints, " ")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func hasSlot(slots []Slot, name string) bool {
	for _, s := range slots {
		if s.Name == name {
			return true
		}
	}
	return false
}

// tryReplication logs in for replication, with the role that the copy will use.
func (r *cloning) tryReplication(ctx context.Context) error {
	source := Record{Name: "source", Conninfo: r.o.Source, ReplicationUser: r.sourceReplicationUser()}
	conn, err := r.login().Dial(ctx, source, r.dialInfo(source))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// checkIdentity keeps a second server from taking a registered node's place by mistake.
func (r *cloning) checkIdentity(add func(string, bool, string, ...any)) {
	if r.cfg.NodeID == 0 {
		return
	}
	if other, ok := registry.ByName(r.recs, r.cfg.NodeName); ok && other.ID != r.cfg.NodeID && other.Active {
		add("identity", false, "the name %q is taken by node ID %d", r.cfg.NodeName, other.ID)
	}
	if r.upstream.ID == r.cfg.NodeID {
		add("identity", false, "%s is the active primary: a node can not be its own standby", r.upstream)
	}
	if other, ok := registry.ByID(r.recs, r.cfg.NodeID); ok && other.Name != r.cfg.NodeName && other.Active {
		add("identity", false, "node ID %d is registered as %q, not as %q", other.ID, other.Name, r.cfg.NodeName)
	}
}

// checkDirectories looks at where the data will go, and whether it will fit.
func (r *cloning) checkDirectories(add, warn func(string, bool, string, ...any)) {
	ours := map[string]bool{} // what a killed clone has left, and will be cleared away
	var old []string          // the tablespaces of the data that is deleted
	target, err := datadir.Open(r.o.Dir, r.o.Force, r.o.runs)
	if err != nil {
		add("directory", false, "%s", err.Error())
	} else {
		add("directory", true, "%s can be used", r.o.Dir)
		ours, old = target.Claimed(), target.OwnTablespaces()
	}
	need := map[uint64]int64{}
	where := map[uint64]string{}
	known := true
	for _, t := range r.tables {
		dir := r.o.Dir
		if t.Location != "" {
			dir = r.tablespaceTarget(t.Location)
			if _, claimed := ours[dir]; claimed {
				continue
			}
			if err := placeOfTablespace(t.Location, dir, r.o.Dir); err != nil {
				add("tablespace", false, "tablespace %q: %s", t.Name, err.Error())
				continue
			}
			if err := datadir.UsableTablespace(dir); err != nil && !slices.Contains(old, datadir.Resolve(dir)) {
				add("tablespace", false, "tablespace %q (%s on the source): %s", t.Name, t.Location, err.Error())
			}
		}
		known = known && t.Bytes >= 0
		fs, err := fileSystem(dir)
		if err == nil {
			need[fs] += max(0, t.Bytes)
			where[fs] = dir
		}
	}
	if !known {
		warn("space", false, "the size of the source is not ours to read: whether it fits is not known")
		return
	}
	for fs, bytes := range need {
		free, err := freeBytes(where[fs])
		if err != nil {
			continue
		}
		if own, err := fileSystem(r.o.Dir); err == nil && own == fs {
			free += treeBytes(r.o.Dir) // it will be deleted, or there is nothing
		}
		for _, dir := range old {
			if own, err := fileSystem(dir); err == nil && own == fs {
				free += treeBytes(dir)
			}
		}
		add("space", free >= bytes+spaceMargin, "%s needed at %s, %s free", wording.Bytes(bytes+spaceMargin), where[fs], wording.Bytes(free))
	}
}

// placeOfTablespace refuses a place that no copy of a tablespace can be in.
func placeOfTablespace(location, to, dir string) error {
	switch {
	case !filepath.IsAbs(location):
		return fmt.Errorf("it is an in-place tablespace (%s, made with allow_in_place_tablespaces), which is meant for tests of PostgreSQL: it can not be cloned. Move its tables elsewhere (ALTER TABLE ... SET TABLESPACE) and drop it", location)
	}
	real, root := datadir.Resolve(to), datadir.Resolve(dir)
	switch {
	case datadir.Within(real, root) && location == to:
		return fmt.Errorf("its directory on the source, %s, would lie inside the new data directory, %s", to, dir)
	case datadir.Within(real, root):
		return fmt.Errorf("tablespace_mapping puts it into %s, inside the new data directory, %s", to, dir)
	case datadir.Within(root, real):
		return fmt.Errorf("the new data directory, %s, would lie inside its own directory, %s", dir, to)
	}
	return nil
}

func fileSystem(dir string) (uint64, error) {
	var st syscall.Stat_t
	err := syscall.Stat(datadir.Nearest(dir), &st)
	return uint64(st.Dev), err
}

func freeBytes(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(datadir.Nearest(dir), &fs); err != nil {
		return 0, err
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil
}
