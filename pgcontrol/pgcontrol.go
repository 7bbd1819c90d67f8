// Package pgcontrol reads what a stopped PostgreSQL server says of itself:
// global/pg_control and PG_VERSION in its data directory, PostgreSQL 13 to 18.
//
// Parse and ParseVersion are pure: bytes in, struct out. Read and ReadVersion
// only read the file for them. It knows PostgreSQL, not repmgr.
package pgcontrol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/wal"
)

var (
	// ErrShort means that the file ends before the control data do.
	ErrShort = errors.New("control file is too short")
	// ErrVersion means a control file of a PostgreSQL older than 13 or newer
	// than 18, or no control file at all.
	ErrVersion = errors.New("control file version is not supported")
	// ErrChecksum means that the content is damaged, or was written by a machine
	// with another memory layout, or was read while a running server wrote it.
	ErrChecksum = errors.New("control file checksum does not match")
)

// State is what the server was doing when it last wrote the control file, in
// the words of pg_controldata. The zero value means unknown.
type State string

// The states of a server.
const (
	StartingUp         State = "starting up"
	ShutDown           State = "shut down"
	ShutDownInRecovery State = "shut down in recovery"
	ShuttingDown       State = "shutting down"
	InCrashRecovery    State = "in crash recovery"
	InArchiveRecovery  State = "in archive recovery"
	InProduction       State = "in production"
)

var states = [...]State{StartingUp, ShutDown, ShutDownInRecovery, ShuttingDown, InCrashRecovery, InArchiveRecovery, InProduction}

// Clean reports whether the server, primary or standby, was stopped in order.
// Every other state of a stopped server means that it crashed.
func (s State) Clean() bool { return s == ShutDown || s == ShutDownInRecovery }

// ControlFile holds the control data that replication needs.
type ControlFile struct {
	SystemIdentifier uint64
	// Version is pg_control_version: 1300 for PostgreSQL 13 to 16, 1700, 1800.
	// CatalogVersion tells the majors apart.
	Version        uint32
	CatalogVersion uint32
	State          State

	// Checkpoint is where the record of the latest checkpoint begins, Redo where
	// replay from it begins.
	Checkpoint wal.LSN
	Redo       wal.LSN
	// Timeline is that of the latest checkpoint. PrevTimeline differs from it
	// only in the checkpoint that ended a recovery.
	Timeline     wal.Timeline
	PrevTimeline wal.Timeline

	// MinRecoveryPoint is how far a standby must replay before it is consistent:
	// zero on a primary.
	MinRecoveryPoint    wal.LSN
	MinRecoveryTimeline wal.Timeline

	// DataChecksums is the version of the data page checksums: 0 is off.
	DataChecksums uint32
	WALLogHints   bool

	// A hot standby needs at least these settings of its primary.
	MaxConnections         int
	MaxWorkerProcesses     int
	MaxWALSenders          int
	MaxPreparedXacts       int
	MaxLocksPerTransaction int

	// Sizes in bytes.
	BlockSize      uint32
	WALBlockSize   uint32
	WALSegmentSize uint32
}

// Read reads global/pg_control under the data directory dir. The server must be
// stopped: on a running one the answer may be out of date at once, or ErrChecksum.
func Read(dir string) (ControlFile, error) {
	path := filepath.Join(dir, "global", "pg_control")
	b, err := os.ReadFile(path)
	if err != nil {
		return ControlFile{}, fmt.Errorf("read control file: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return ControlFile{}, fmt.Errorf("read control file %s: %w", path, err)
	}
	return c, nil
}

// Offsets in the file, for compilers that align 8-byte integers to 8 bytes. They
// are the same in every supported version, up to the authentication nonce
// before the checksum: the latest checkpoint's copy lies at 40, and the member
// added to it in 17 took what had been padding.
const (
	offSystemIdentifier = 0
	offVersion          = 8
	offCatalogVersion   = 12
	offState            = 16
	offCheckpoint       = 32
	offRedo             = 40
	offTimeline         = 48
	offPrevTimeline     = 52
	offMinRecoveryPoint = 136
	offMinRecoveryTLI   = 144
	offWALLogHints      = 176
	offMaxConnections   = 180
	offMaxWorkers       = 184
	offMaxWALSenders    = 188
	offMaxPreparedXacts = 192
	offMaxLocksPerXact  = 196
	offBlockSize        = 216
	offWALBlockSize     = 224
	offWALSegmentSize   = 228
	offDataChecksums    = 252
)

// crcOffset returns where the checksum lies, which is also how many bytes it
// covers, and 0 for a version that is not known.
func crcOffset(version uint32) int {
	switch version {
	case 1300, 1700: // PostgreSQL 13 to 16, 17
		return 288
	case 1800: // PostgreSQL 18 put default_char_signedness before the nonce
		return 292
	default:
		return 0
	}
}

// Parse reads the content of a pg_control file of either byte order, and checks
// its checksum. Its errors wrap ErrShort, ErrVersion and ErrChecksum.
func Parse(b []byte) (ControlFile, error) {
	if len(b) < offState {
		return ControlFile{}, fmt.Errorf("%w: %d bytes", ErrShort, len(b))
	}
	var order binary.ByteOrder = binary.LittleEndian
	if crcOffset(binary.BigEndian.Uint32(b[offVersion:])) > 0 {
		order = binary.BigEndian
	}
	u32 := func(off int) uint32 { return order.Uint32(b[off:]) }
	lsn := func(off int) wal.LSN { return wal.LSN(order.Uint64(b[off:])) }
	number := func(off int) int { return int(int32(u32(off))) }

	end := crcOffset(u32(offVersion))
	switch {
	case end == 0:
		return ControlFile{}, fmt.Errorf("%w: %d, want 1300 (PostgreSQL 13 to 16), 1700 (17) or 1800 (18)", ErrVersion, u32(offVersion))
	case len(b) < end+4:
		return ControlFile{}, fmt.Errorf("%w: %d bytes, want at least %d", ErrShort, len(b), end+4)
	}
	if got, want := crc32.Checksum(b[:end], crc32.MakeTable(crc32.Castagnoli)), u32(end); got != want {
		return ControlFile{}, fmt.Errorf("%w: computed %08X, stored %08X", ErrChecksum, got, want)
	}

	c := ControlFile{
		SystemIdentifier:       order.Uint64(b[offSystemIdentifier:]),
		Version:                u32(offVersion),
		CatalogVersion:         u32(offCatalogVersion),
		Checkpoint:             lsn(offCheckpoint),
		Redo:                   lsn(offRedo),
		Timeline:               wal.Timeline(u32(offTimeline)),
		PrevTimeline:           wal.Timeline(u32(offPrevTimeline)),
		MinRecoveryPoint:       lsn(offMinRecoveryPoint),
		MinRecoveryTimeline:    wal.Timeline(u32(offMinRecoveryTLI)),
		DataChecksums:          u32(offDataChecksums),
		WALLogHints:            b[offWALLogHints] != 0,
		MaxConnections:         number(offMaxConnections),
		MaxWorkerProcesses:     number(offMaxWorkers),
		MaxWALSenders:          number(offMaxWALSenders),
		MaxPreparedXacts:       number(offMaxPreparedXacts),
		MaxLocksPerTransaction: number(offMaxLocksPerXact),
		BlockSize:              u32(offBlockSize),
		WALBlockSize:           u32(offWALBlockSize),
		WALSegmentSize:         u32(offWALSegmentSize),
	}
	if s := u32(offState); s < uint32(len(states)) {
		c.State = states[s]
	}
	return c, nil
}

// Position returns how far the stopped server's log is known to go: the minimum
// recovery point of a standby, else the end of the latest checkpoint's record.
//
// After a clean stop of a primary that is the end of its log, byte for byte what
// a standby that got everything reports as received. Otherwise it is a lower
// bound: a crashed server may hold more, and a standby may hold log that it has
// received and not replayed.
func (c ControlFile) Position() wal.Position {
	if c.MinRecoveryPoint != 0 {
		return wal.Position{Timeline: c.MinRecoveryTimeline, LSN: c.MinRecoveryPoint}
	}
	return wal.Position{Timeline: c.Timeline, LSN: c.checkpointEnd()}
}

// checkpointEnd steps over the checkpoint's record. A server stopped right after
// the fork has this one record beyond it, so the difference decides whether it
// can follow.
func (c ControlFile) checkpointEnd() wal.LSN {
	const (
		record        = 114 // 24 header, 2 block header, 88 checkpoint: 13 to 18
		pageHeader    = 24
		segmentHeader = 40 // on the first page of a segment
	)
	if c.Checkpoint == 0 || c.WALBlockSize == 0 || c.WALSegmentSize == 0 {
		return c.Checkpoint
	}
	page, segment := wal.LSN(c.WALBlockSize), wal.LSN(c.WALSegmentSize)
	at, rest := c.Checkpoint, wal.LSN(record)
	for room := page - at%page; rest > room; room = page - at%page {
		at, rest = at+room, rest-room
		if at%segment == 0 {
			at += segmentHeader
		} else {
			at += pageHeader
		}
	}
	return (at + rest + 7) &^ 7 // records begin at multiples of 8
}

// ReadVersion returns the major version of the data directory dir, such as 15,
// from its PG_VERSION file.
func ReadVersion(dir string) (int, error) {
	path := filepath.Join(dir, "PG_VERSION")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read server version: %w", err)
	}
	n, err := ParseVersion(b)
	if err != nil {
		return 0, fmt.Errorf("read server version from %s: %w", path, err)
	}
	return n, nil
}

// ParseVersion reads the content of PG_VERSION. Servers before 10 had a major
// version of two parts: of those it returns the first.
func ParseVersion(b []byte) (int, error) {
	major, _, _ := strings.Cut(strings.TrimSpace(string(b)), ".")
	n, err := strconv.ParseUint(major, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("parse PG_VERSION %.20q: want a number", b)
	}
	return int(n), nil
}
