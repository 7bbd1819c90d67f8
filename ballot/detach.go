package ballot

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// savedPrefix begins the names of the settings that keep the original value of an overridden
// setting: '=' and the value, or an empty string where the file had no such setting.
const savedPrefix = "repmgr.saved_"

// Parameters are the settings that a login must be allowed to change by ALTER SYSTEM for a
// pledge, if it is no superuser.
var Parameters = []string{Setting, "primary_conninfo", receiverTimeout, savedPrefix + receiverTimeout}

// ArchiveParameters are needed in addition where the standby has a restore_command. A login
// that may change restore_command can run any command as the user of the server.
var ArchiveParameters = []string{archive, savedPrefix + archive}

// Override puts a setting in force until [Revert] with the same value, and keeps the original
// value. If somebody has changed the setting since an earlier override, or a clone has it from
// its source, the present value is kept. The caller must reload the settings.
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

// Revert ends an [Override] by value. A different value that somebody has set since stays in
// force. It reports whether there was an override; then the caller must reload the settings.
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

// Inherited says which settings a copy of a server must change (give) or remove (drop). file
// is the text of the source's file of ALTER SYSTEM. The vote, the pause and an announced rule
// belong to the source only, and overrides of the source are ended. [SyncMark] stays, because
// synchronous_standby_names stays, and [LocalWAL] stays, because the copy has that WAL as well.
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
		if strings.HasPrefix(name, "repmgr.") && name != SyncMark && name != LocalWAL {
			drop = append(drop, name)
		}
	}
	return give, drop, nil
}

// LocalWAL is the setting that marks a server whose crash recovery, before a rewind, has written
// WAL that no other server has. Its value is a position as JSON: the timeline, and the place
// behind which that WAL begins. Other servers may have different WAL there, so the end of this
// server's WAL can not be compared with theirs, and the server can follow nobody until it was
// rewound or cloned. The setting is written before that recovery and removed at the end of the
// rejoin; a promotion begins a new timeline and so makes it void.
const LocalWAL = "repmgr.own_wal"

// SyncMark is the setting that records which value of synchronous_standby_names was set by a daemon.
const SyncMark = "repmgr.sync"

// Store writes one of our settings into the file of ALTER SYSTEM.
func Store(ctx context.Context, conn *pgx.Conn, name, value string) error {
	return alter(ctx, conn, name, &value)
}

// Remove removes one of our settings from the file of ALTER SYSTEM.
func Remove(ctx context.Context, conn *pgx.Conn, name string) error {
	return alter(ctx, conn, name, nil)
}

// alter sets a setting with ALTER SYSTEM, or removes it from the file where value is nil.
func alter(ctx context.Context, conn *pgx.Conn, name string, value *string) error {
	if strings.Contains(name, ".") { // a setting that no module defines needs a placeholder in the session
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

// archive is the setting by which a standby fetches WAL from an archive.
const archive = "restore_command"

// replayPause is the setting that marks a replay that a pledge has paused. Before PostgreSQL
// 14 restore_command can not be changed while the server runs; a standby whose replay is paused
// fetches at most the file that it has already asked for.
const replayPause = savedPrefix + "replay"

// DisableArchive stops a standby from fetching WAL from an archive until [EnableArchive]: a running
// restore_command ends, and no further one is started. Before PostgreSQL 14 it does nothing.
func DisableArchive(ctx context.Context, conn *pgx.Conn) error {
	changeable, there, _, err := archiveState(ctx, conn)
	if err != nil || !changeable || !there {
		return err
	}
	if err := Override(ctx, conn, archive, ""); err != nil {
		return err
	}
	return reload(ctx, conn)
}

// archiveState reports whether restore_command can be changed while the server runs, whether
// it is set, and whether the replay is paused.
func archiveState(ctx context.Context, conn *pgx.Conn) (changeable, there, paused bool, err error) {
	err = conn.QueryRow(ctx, `SELECT pg_catalog.current_setting('server_version_num')::int >= 140000, pg_catalog.current_setting($1) <> '',
		CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END`, archive).Scan(&changeable, &there, &paused)
	if err != nil {
		err = fmt.Errorf("read %s: %w", archive, err)
	}
	return changeable, there, paused, err
}

// stopArchive is [DisableArchive] for a pledge, and works on every version. The caller must
// reload the settings.
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

// EnableArchive lets a standby fetch WAL from its archive again.
func EnableArchive(ctx context.Context, conn *pgx.Conn) error {
	changed, err := Revert(ctx, conn, archive, "")
	if err == nil && changed {
		err = reload(ctx, conn)
	}
	if err != nil {
		return err
	}
	return ResumeReplay(ctx, conn)
}

// ResumeReplay ends a pause of the replay that a pledge has made, and no other pause. It also
// reverts a [ShortenReceiverTimeout] that was left behind by a coordinator which has died since.
func ResumeReplay(ctx context.Context, conn *pgx.Conn) error {
	set, err := ReadSettings(ctx, conn)
	if err != nil {
		return fmt.Errorf("read %s: %w", replayPause, err)
	}
	if _, hurried := set[savedPrefix+receiverTimeout]; hurried {
		if err := RestoreReceiverTimeout(ctx, conn); err != nil {
			return err
		}
	}
	if _, paused := set[replayPause]; !paused {
		return nil
	}
	if _, err := conn.Exec(ctx, `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_wal_replay_resume() END`); err != nil {
		return fmt.Errorf("resume the replay: %w", err)
	}
	return alter(ctx, conn, replayPause, nil)
}

// ArchiveDisabled returns the settings that stop the use of the archive on a server that is down.
// file is the text of its file of ALTER SYSTEM. It works on every version.
func ArchiveDisabled(file string) (set map[string]string, err error) {
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

// ArchiveEnabled reverts [ArchiveDisabled]: it returns what to set in the file and what to remove.
// kept is false where there is nothing to revert.
func ArchiveEnabled(file string) (set map[string]string, unset []string, kept bool, err error) {
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

// receiverTimeout is the setting that ends a WAL receiver which hears nothing. It works even
// where the startup process is too busy to notice that primary_conninfo was removed.
const receiverTimeout = "wal_receiver_timeout"

// briefly is the value of receiverTimeout during that time, in milliseconds.
const briefly = "1"

// ShortenReceiverTimeout makes the WAL receiver of a detached standby end as soon as it receives
// nothing for a moment. [RestoreReceiverTimeout] reverts this.
func ShortenReceiverTimeout(ctx context.Context, conn *pgx.Conn) error {
	if err := Override(ctx, conn, receiverTimeout, briefly); err != nil {
		return err
	}
	return reload(ctx, conn)
}

// RestoreReceiverTimeout reverts [ShortenReceiverTimeout].
func RestoreReceiverTimeout(ctx context.Context, conn *pgx.Conn) error {
	changed, err := Revert(ctx, conn, receiverTimeout, briefly)
	if err == nil && changed {
		err = reload(ctx, conn)
	}
	return err
}

// RestoreReceiverTimeoutAttached is [RestoreReceiverTimeout] for a standby that has an upstream
// again: a coordinator that died between the two has left the short timeout behind, with which
// the standby can not stream. A standby without an upstream is left alone, because an election
// may be using the short timeout.
func RestoreReceiverTimeoutAttached(ctx context.Context, conn *pgx.Conn) error {
	var left bool
	err := conn.QueryRow(ctx, `SELECT pg_catalog.current_setting($1) = '1ms' AND pg_catalog.current_setting('primary_conninfo') <> ''`, receiverTimeout).Scan(&left)
	if Unreadable(err) || err == nil && !left {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", receiverTimeout, err)
	}
	return RestoreReceiverTimeout(ctx, conn)
}

func reload(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_reload_conf()`); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	return nil
}
