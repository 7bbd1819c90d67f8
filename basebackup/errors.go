package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// What goes wrong with a copy, by name. Each is wrapped together with the
// server's or the system's own error.
var (
	// ErrNotEmpty: the target directory, or a tablespace's, holds files.
	ErrNotEmpty = errors.New("directory is not empty")

	// ErrNoWALSenders: the source's max_wal_senders are all in use. A copy needs two.
	ErrNoWALSenders = errors.New("the source has no free WAL sender (max_wal_senders)")

	// ErrNoSlots: the source's max_replication_slots are all in use.
	ErrNoSlots = errors.New("the source has no free replication slot (max_replication_slots)")

	// ErrNoSlot: the slot that was asked for does not exist.
	ErrNoSlot = errors.New("the replication slot does not exist on the source")

	// ErrSlotInUse: another process streams through the slot that was asked for.
	ErrSlotInUse = errors.New("the replication slot is in use")

	// ErrAuthentication: wrong password, or no entry for a replication
	// connection in the source's pg_hba.conf.
	ErrAuthentication = errors.New("the source refuses the login for replication")

	// ErrPrivilege: the role has no REPLICATION attribute.
	ErrPrivilege = errors.New("the role may not replicate")

	// ErrWALLevel: the source runs with wal_level=minimal.
	ErrWALLevel = errors.New("the source has wal_level=minimal, want replica or logical")

	// ErrPromoted: the source was a standby and was promoted during the copy.
	ErrPromoted = errors.New("the source was promoted during the copy")

	// ErrSourceLost: the source shut down, crashed or went silent during the copy.
	ErrSourceLost = errors.New("the source shut down or the connection to it was lost")

	// ErrWALRemoved: the source recycled WAL that the copy still needed.
	ErrWALRemoved = errors.New("the source has removed WAL that the copy needs")

	// ErrNoSpace: a file system is full, or a quota used up.
	ErrNoSpace = errors.New("no space left for the copy")

	// ErrUnsafePath: the source sent a file name that leads out of the target.
	ErrUnsafePath = errors.New("unsafe path in the backup stream")

	// ErrVersion: the source is older than PostgreSQL 13, or not PostgreSQL.
	ErrVersion = errors.New("the source is not PostgreSQL 13 or later")
)

// SQLSTATEs that have a name of their own here.
const (
	codeTooManyConnections = "53300"
	codeConfigLimit        = "53400"
	codeInvalidAuth        = "28000"
	codeInvalidPassword    = "28P01"
	codePrivilege          = "42501"
	codeUndefinedObject    = "42704"
	codeObjectInUse        = "55006"
	codeNotInState         = "55000"
	codeUndefinedFile      = "58P01"
	codeAdminShutdown      = "57P01"
	codeCrashShutdown      = "57P02"
	codeCannotConnectNow   = "57P03"
	routineInitProcess     = "InitProcess" // raises 53300 for WAL senders only when they run out
	explainConnectTimeout  = 3 * time.Second
)

// explain puts a name to an error of the server or the connection.
func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		if name := explainServer(pg); name != nil {
			return fmt.Errorf("%w: %w", name, err)
		}
		return err
	}
	if isEOF(err) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("%w: %w", ErrSourceLost, err)
	}
	return err
}

func explainServer(pg *pgconn.PgError) error {
	switch pg.Code {
	case codeTooManyConnections:
		if pg.Routine == routineInitProcess {
			return ErrNoWALSenders
		}
	case codeConfigLimit:
		return ErrNoSlots
	case codeInvalidAuth, codeInvalidPassword:
		return ErrAuthentication
	case codePrivilege:
		return ErrPrivilege
	case codeUndefinedObject:
		return ErrNoSlot
	case codeObjectInUse:
		return ErrSlotInUse
	case codeUndefinedFile:
		switch pg.Routine {
		case "WalSndSegmentOpen", "CheckXLogRemoved", "WALReadRaiseError", "XLogReadRaiseError":
			return ErrWALRemoved
		}
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		return ErrSourceLost
	case codeNotInState:
		// One SQLSTATE for many reasons, and the words are of any language. The names
		// of settings in them are the same in all.
		if strings.Contains(pg.Hint, "wal_level") {
			return ErrWALLevel
		}
		if strings.Contains(pg.Message, "full_page_writes") {
			return nil
		}
		switch pg.Routine {
		case "sendDir", "do_pg_backup_stop", "do_pg_stop_backup":
			return ErrPromoted
		}
	}
	return nil
}

// explainConnect tells a source with wal_level=minimal, which has no WAL
// senders at all, from one that has none free.
func explainConnect(ctx context.Context, cfg *pgconn.Config, err error) error {
	err = explain(err)
	if !errors.Is(err, ErrNoWALSenders) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, explainConnectTimeout)
	defer cancel()
	c, cerr := pgconn.ConnectConfig(ctx, cfg)
	if cerr != nil {
		return err
	}
	defer c.Close(ctx)
	res := c.ExecParams(ctx, "SHOW wal_level", nil, nil, nil, nil).Read()
	if res.Err == nil && len(res.Rows) == 1 && string(res.Rows[0][0]) == "minimal" {
		return fmt.Errorf("%w: %w", ErrWALLevel, err)
	}
	return err
}

// explainFile puts a name to an error of the target's file system.
func explainFile(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
