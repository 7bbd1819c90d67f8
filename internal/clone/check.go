package clone

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pgrepmgr/repmgr/internal/datadir"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/postmaster"
	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/internal/wording"
	"github.com/pgrepmgr/repmgr/registry"
)

// A copy needs one WAL sender for the data and one for the WAL meanwhile.
const senders = 2

// spaceMargin is the space kept free beyond the estimate, for WAL that is written meanwhile.
const spaceMargin = 64 << 20

// Plan is what will be copied, and where to.
type Plan struct {
	Source      string // the name of the source in messages
	Status      registry.NodeStatus
	Role        string // for replication connections to it
	Slot        string // on the source; empty: none
	Dir         string // the new data directory
	Force       bool   // replaces the data directory of a server that does not run
	Runs        bool   // the server in Dir may run, because it will be stopped
	Elsewhere   string // the advice how to choose another directory, without a full stop
	Tablespaces []Tablespace
	Place       func(location string) string // where a tablespace of the source goes here
}

// Check is one check that was made before anything was changed.
type Check struct {
	Name    string
	OK      bool
	Warning bool // not OK, but no reason to stop
	Detail  string
}

// Checks are made before the first change; the error of [Checks.Verdict] names all that failed.
type Checks []Check

// Add adds a check that must be ok.
func (cs *Checks) Add(name string, ok bool, format string, args ...any) {
	*cs = append(*cs, Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)})
}

// Try adds a check that fails with err. fine is its text without an error.
func (cs *Checks) Try(name, fine string, err error) {
	if err != nil {
		fine = err.Error()
	}
	cs.Add(name, err == nil, "%s", fine)
}

func (cs *Checks) warn(name string, ok bool, format string, args ...any) {
	*cs = append(*cs, Check{Name: name, OK: ok, Warning: !ok, Detail: fmt.Sprintf(format, args...)})
}

// Source checks whether the source can be copied.
func (cs *Checks) Source(p Plan) {
	s := p.Status.Settings
	cs.Add("source", true, "%s runs PostgreSQL %s as %s", p.Source, p.Status.Version, p.Status.Role())
	cs.Add("wal_level", s.WALLevel == "replica" || s.WALLevel == "logical", "it is %q on the source; replica or logical is needed", s.WALLevel)
	cs.Add("max_wal_senders", s.MaxWALSenders-len(p.Status.Senders) >= senders,
		"%d of max_wal_senders = %d are free on the source; cloning needs %d", s.MaxWALSenders-len(p.Status.Senders), s.MaxWALSenders, senders)
	if p.Slot != "" {
		exists := slices.ContainsFunc(p.Status.Slots, func(s registry.Slot) bool { return s.Name == p.Slot })
		cs.Add("max_replication_slots", s.MaxSlots > len(p.Status.Slots) || exists,
			"%d of max_replication_slots = %d are used on the source", len(p.Status.Slots), s.MaxSlots)
	}
}

// Identity checks that the new server does not take the place of another registered node by mistake. A
// self without an ID will not be registered.
func (cs *Checks) Identity(recs []registry.Record, self, upstream registry.Record) {
	if self.ID == 0 {
		return
	}
	if other, ok := registry.ByName(recs, self.Name); ok && other.ID != self.ID && other.Active {
		cs.Add("identity", false, "the name %q is taken by node ID %d", self.Name, other.ID)
	}
	if upstream.ID == self.ID {
		cs.Add("identity", false, "%s is the active primary: a node can not be its own standby", upstream)
	}
	if other, ok := registry.ByID(recs, self.ID); ok && other.Name != self.Name && other.Active {
		cs.Add("identity", false, "node ID %d is registered as %q, not as %q", other.ID, other.Name, self.Name)
	}
}

// Settings warns of settings of the source that would harm a standby of it.
func (cs *Checks) Settings(p Plan) {
	s := p.Status.Settings
	if s.HotStandby == "off" {
		cs.warn("hot_standby", false, "hot_standby is off: a standby that takes no connections can not be monitored")
	}
	cs.warn("archiving", s.ArchiveMode == "off" || s.ArchiveCommand != "" && s.ArchiveCommand != "(disabled)", "archive_mode is %q, archive_command is %q", s.ArchiveMode, s.ArchiveCommand)
	if s.DataChecksums == "on" || s.WALLogHints == "on" {
		cs.Add("pg_rewind", true, "data_checksums is %s, wal_log_hints is %s", s.DataChecksums, s.WALLogHints)
	} else {
		cs.warn("pg_rewind", false, "neither data checksums nor wal_log_hints are on: a failed primary can not be rewound, only cloned anew")
	}
	if dir := s.DataDirectory; dir != "" && s.ConfigFile != "" {
		if strings.HasPrefix(s.ConfigFile, dir+"/") {
			cs.Add("configuration files", true, "they lie in the data directory and are copied with it")
		} else {
			cs.warn("configuration files", false, "the source's configuration is in %s, outside its data directory: it is not copied", filepath.Dir(s.ConfigFile))
		}
	}
}

// Verdict logs all checks and returns an error that names all that failed, each with a hint. It
// is ErrDirectory where only the target is wrong, else ErrRefused.
func (cs Checks) Verdict(log *slog.Logger, p Plan) error {
	var failed, hints []string
	kind := failure.ErrDirectory
	for _, c := range cs {
		switch {
		case c.OK:
			log.Debug("check passed", "check", c.Name, "detail", c.Detail)
		case c.Warning:
			log.Warn(c.Name + ": " + c.Detail)
		default:
			failed = append(failed, c.Name+": "+c.Detail)
			if hint := p.hint(c.Name); hint != "" {
				hints = append(hints, hint)
			}
			if c.Name != "directory" && c.Name != "space" && c.Name != "tablespace" {
				kind = failure.ErrRefused
			}
		}
	}
	hint := strings.Join(hints, " ")
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return failure.WithHint(failure.Of(kind, "can not clone %s: %s", p.Source, failed[0]), "%s", hint)
	default:
		return failure.WithHint(failure.Of(kind, "can not clone %s:\n  - %s", p.Source, strings.Join(failed, "\n  - ")), "%s", hint)
	}
}

// hint says what to do about a check that failed.
func (p Plan) hint(check string) string {
	switch check {
	case "wal_level", "max_wal_senders", "max_replication_slots":
		return fmt.Sprintf("Raise %s in the source's postgresql.conf and restart it.", check)
	case "replication connection":
		return fmt.Sprintf("Allow it in the source's pg_hba.conf (database replication, user %q), and give the role REPLICATION.", p.Role)
	case "directory":
		return directoryHint(p.Elsewhere, p.Dir, p.Force, postmaster.PID(p.Dir))
	case "clone method":
		return "Without ssh and rsync, use --method=basebackup."
	case "space":
		return "Free some space, or clone into another file system."
	case "tablespace":
		return "Set tablespace_mapping = 'old=new' in repmgr.conf, with a new directory outside of the data directory that is empty or does not exist."
	case "identity":
		return "Correct node_id and node_name in repmgr.conf, or unregister the other node."
	}
	return ""
}

// directoryHint says what to do about a directory that can not be cloned into. other is the advice how
// to choose another one; pid is that of the server that runs in it, or 0 where none runs. The hint does
// not advise what the user has already tried.
func directoryHint(other, dir string, force bool, pid int) string {
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

// Directories checks where the data will go, and whether it will fit.
func (cs *Checks) Directories(p Plan) {
	ours := map[string]bool{} // the directories that an interrupted clone has left, which will be removed
	var old []string          // the tablespaces of the data that is deleted
	target, err := datadir.Open(p.Dir, p.Force, p.Runs)
	if err != nil {
		cs.Add("directory", false, "%s", err.Error())
	} else {
		cs.Add("directory", true, "%s can be used", p.Dir)
		ours, old = target.Claimed(), target.OwnTablespaces()
	}
	need := map[uint64]int64{}
	where := map[uint64]string{}
	known := true
	for _, t := range p.Tablespaces {
		dir := p.Dir
		if t.Location != "" {
			dir = p.Place(t.Location)
			if _, claimed := ours[dir]; claimed {
				continue
			}
			if err := placeOfTablespace(t.Location, dir, p.Dir); err != nil {
				cs.Add("tablespace", false, "tablespace %q: %s", t.Name, err.Error())
				continue
			}
			if err := datadir.UsableTablespace(dir); err != nil && !slices.Contains(old, datadir.Resolve(dir)) {
				cs.Add("tablespace", false, "tablespace %q (%s on the source): %s", t.Name, t.Location, err.Error())
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
		cs.warn("space", false, "this login may not read the size of the source: whether there is enough space is not known")
		return
	}
	for fs, bytes := range need {
		free, err := freeBytes(where[fs])
		if err != nil {
			continue
		}
		if own, err := fileSystem(p.Dir); err == nil && own == fs {
			free += datadir.Size(p.Dir) // that data will be deleted, or there is none
		}
		for _, dir := range old {
			if own, err := fileSystem(dir); err == nil && own == fs {
				free += datadir.Size(dir)
			}
		}
		cs.Add("space", free >= bytes+spaceMargin, "%s needed at %s, %s free", wording.Bytes(bytes+spaceMargin), where[fs], wording.Bytes(free))
	}
}

// placeOfTablespace returns an error where the copy of a tablespace can not be placed in a directory.
func placeOfTablespace(location, to, dir string) error {
	if !filepath.IsAbs(location) {
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
