package ballot

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// savedPrefix is how the settings are called that keep what was in the file of
// ALTER SYSTEM in place of what was put there for a while: '=' and the value, or
// ” where there was none.
const savedPrefix = "repmgr.saved_"

// Parameters are the settings that a login which is no superuser must be allowed to
// change by ALTER SYSTEM for a pledge.
var Parameters = []string{Setting, "primary_conninfo", receiverTimeout, savedPrefix + receiverTimeout}

// ArchiveParameters are those beside them where the standby has a restore_command.
// Who may change that can run any command as the user of the server.
var ArchiveParameters = []string{archive, savedPrefix + archive}

// Override puts a setting in force for a while, until [Revert] with the same
// value. It keeps what was there before: where somebody has changed the setting
// since an earlier override, or a clone has brought that of its source, what is
// there now. Whoever calls it reloads.
func Override(ctx context.Context, conn *pgx.Conn, name, value string) error {
	set, err := ReadSettings(ctx, conn)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	was, there := set[name]
	if _, kept := set[savedPrefix+name]; !kept || !there || was != value {
		keep := ""
		if there {
			keep = "=" + was
		}
		if err := alter(ctx, conn, savedPrefix+name, &keep); err != nil {
			return err
		}
	}
	return alter(ctx, conn, name, &value)
}

// Revert ends an override by value; what somebody has set in its place since
// stays. It reports whether there was one: then whoever called it reloads.
func Revert(ctx context.Context, conn *pgx.Conn, name, value string) (changed bool, err error) {
	set, err := ReadSettings(ctx, conn)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", savedPrefix+name, err)
	}
	kept, ok := set[savedPrefix+name]
	if !ok {
		return false, nil
	}
	if now, there := set[name]; there && now == value {
		var was *string
		if text, ok := strings.CutPrefix(kept, "="); ok {
			was = &text
		}
		if err := alter(ctx, conn, name, was); err != nil {
			return false, err
		}
	}
	return true, alter(ctx, conn, savedPrefix+name, nil)
}

// Inherited says what of its source's settings in the file of ALTER SYSTEM, with this
// text, a copy of that server must not have: settings that get another value, and those that go. A
// vote and a pause are one node's own, as is the rule that a node was told of ahead of
// its tables; what was put in force for a while on the source is none of the copy's.
// The mark of synchronous_standby_names stays beside it: it says whose that value is.
// WAL of its own the copy has, too.
func Inherited(file string) (give map[string]string, drop []string, err error) {
	set, err := FileSettings(file)
	if err != nil {
		return nil, nil, err
	}
	give = map[string]string{}
	for name, value := range set {
		of, saved := strings.CutPrefix(name, savedPrefix)
		was, there := strings.CutPrefix(value, "=")
		override := of == archive && set[of] == "" || of == receiverTimeout && set[of] == briefly
		switch {
		case saved && override && there:
			give[of] = was
		case saved && override:
			drop = append(drop, of)
		}
		if strings.HasPrefix(name, "repmgr.") && name != SyncMark && name != OwnWAL {
			drop = append(drop, name)
		}
	}
	return give, drop, nil
}

// OwnWAL is the setting that says that crash recovery has given a server that was to be
// rewound some WAL of its own, on which timeline, and behind which place: a position as JSON.
// Others may have other WAL there: the end of this server's WAL tells nothing, and it can
// follow nobody until it has been rewound or cloned. It is made before that recovery and
// goes with the end of the rejoin; a promotion, which begins another timeline, makes it void.
const OwnWAL = "repmgr.own_wal"

// SyncMark says which value of synchronous_standby_names the daemons have set.
const SyncMark = "repmgr.sync"

// Store writes a setting of ours into the file of ALTER SYSTEM.
func Store(ctx context.Context, conn *pgx.Conn, name, value string) error {
	return alter(ctx, conn, name, &value)
}

// alter sets a setting with ALTER SYSTEM, or takes it out of the file.
func alter(ctx context.Context, conn *pgx.Conn, name string, value *string) error {
	if strings.Contains(name, ".") { // one that no module has defined needs a placeholder in the session
		if _, err := conn.Exec(ctx, `SELECT pg_catalog.set_config($1, '', false)`, name); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	sql := `ALTER SYSTEM RESET ` + name
	if value != nil {
		sql = `ALTER SYSTEM SET ` + name + ` = '` + strings.ReplaceAll(*value, "'", "''") + `'`
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

// archive is the setting that brings WAL from an archive.
const archive = "restore_command"

// replayPause is a mark that a pledge has paused the replay: before PostgreSQL 14
// restore_command can not be changed while the server runs, and a standby whose
// replay stands fetches no more than it has begun to.
const replayPause = savedPrefix + "replay"

// CutArchive keeps a standby from fetching more WAL from an archive, until
// [GiveArchive]: a command that runs ends, and no further one is begun. Before
// PostgreSQL 14 it does nothing.
func CutArchive(ctx context.Context, conn *pgx.Conn) error {
	changeable, there, _, err := archiveState(ctx, conn)
	if err != nil || !changeable || !there {
		return err
	}
	if err := Override(ctx, conn, archive, ""); err != nil {
		return err
	}
	return reload(ctx, conn)
}

// archiveState reports whether restore_command can be changed while the server runs,
// whether there is one, and whether its replay is paused.
func archiveState(ctx context.Context, conn *pgx.Conn) (changeable, there, paused bool, err error) {
	err = conn.QueryRow(ctx, `SELECT pg_catalog.current_setting('server_version_num')::int >= 140000, pg_catalog.current_setting($1) <> '',
		CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END`, archive).Scan(&changeable, &there, &paused)
	if err != nil {
		err = fmt.Errorf("read %s: %w", archive, err)
	}
	return changeable, there, paused, err
}

// stopArchive is [CutArchive] for a pledge, on every version. Whoever calls it reloads.
func stopArchive(ctx context.Context, conn *pgx.Conn) error {
	changeable, there, paused, err := archiveState(ctx, conn)
	switch {
	case err != nil || !there:
		return err
	case changeable:
		return Override(ctx, conn, archive, "")
	case paused:
		return nil
	}
	mark := "paused"
	if err := alter(ctx, conn, replayPause, &mark); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_wal_replay_pause()`); err != nil {
		return fmt.Errorf("pause the replay: %w", err)
	}
	return nil
}

// GiveArchive lets a standby fetch WAL from its archive again.
func GiveArchive(ctx context.Context, conn *pgx.Conn) error {
	changed, err := Revert(ctx, conn, archive, "")
	if err == nil && changed {
		err = reload(ctx, conn)
	}
	if err != nil {
		return err
	}
	return ResumeReplay(ctx, conn)
}

// ResumeReplay ends the pause that a pledge has made, and no other.
func ResumeReplay(ctx context.Context, conn *pgx.Conn) error {
	set, err := ReadSettings(ctx, conn)
	if err != nil {
		return fmt.Errorf("read %s: %w", replayPause, err)
	}
	if _, paused := set[replayPause]; !paused {
		return nil
	}
	if _, err := conn.Exec(ctx, `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_wal_replay_resume() END`); err != nil {
		return fmt.Errorf("resume the replay: %w", err)
	}
	return alter(ctx, conn, replayPause, nil)
}

// ArchiveCut says what puts the archive out of force where the server is down:
// what to set in the file of ALTER SYSTEM with this text. It works on every version.
func ArchiveCut(file string) (set map[string]string, err error) {
	now, err := FileSettings(file)
	if err != nil {
		return nil, err
	}
	set = map[string]string{archive: ""}
	was, there := now[archive]
	if _, kept := now[savedPrefix+archive]; !kept || !there || was != "" {
		set[savedPrefix+archive] = ""
		if there {
			set[savedPrefix+archive] = "=" + was
		}
	}
	return set, nil
}

// ArchiveGiven takes that back: what to set, and what to take out of the file. kept
// is false where there is nothing to take back.
func ArchiveGiven(file string) (set map[string]string, unset []string, kept bool, err error) {
	now, err := FileSettings(file)
	if err != nil {
		return nil, nil, false, err
	}
	saved, kept := now[savedPrefix+archive]
	if !kept {
		return nil, nil, false, nil
	}
	set, unset = map[string]string{}, []string{savedPrefix + archive}
	if was, there := now[archive]; there && was == "" {
		if text, ok := strings.CutPrefix(saved, "="); ok {
			set[archive] = text
		} else {
			unset = append(unset, archive)
		}
	}
	return set, unset, true, nil
}

// receiverTimeout is the setting that ends a WAL receiver which hears nothing,
// also where the startup process is too busy to see that it was detached.
const receiverTimeout = "wal_receiver_timeout"

// briefly is what it is then, in milliseconds.
const briefly = "1"

// HurryReceiver makes the WAL receiver of a detached standby end as soon as
// nothing comes for a moment. [Settle] takes that back.
func HurryReceiver(ctx context.Context, conn *pgx.Conn) error {
	if err := Override(ctx, conn, receiverTimeout, briefly); err != nil {
		return err
	}
	return reload(ctx, conn)
}

// Settle takes back what [HurryReceiver] did.
func Settle(ctx context.Context, conn *pgx.Conn) error {
	changed, err := Revert(ctx, conn, receiverTimeout, briefly)
	if err == nil && changed {
		err = reload(ctx, conn)
	}
	return err
}

func reload(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_reload_conf()`); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	return nil
}
