// Package basebackup copies a running PostgreSQL server into a new data
// directory. It speaks the BASE_BACKUP command of the streaming replication
// protocol (servers 13 and later) and needs no program of PostgreSQL.
//
// WAL is streamed over a second connection while the data is copied, held by a
// replication slot, so that the copy starts by itself, whatever the source
// writes or recycles meanwhile.
//
// A copy that did not finish can not be started: global/pg_control gets its
// name last, after all else is complete and on disk.
package basebackup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/wal"
)

const (
	// DefaultLabel is the backup label when Options.Label is empty.
	DefaultLabel = "basebackup"

	// DefaultApplicationName names both connections in pg_stat_replication
	// when Options.ApplicationName is empty.
	DefaultApplicationName = "basebackup"

	// DefaultWALTimeout is how long the source may be silent on the WAL
	// connection when Options.WALTimeout is zero.
	DefaultWALTimeout = time.Minute

	minRate, maxRate = 32, 1 << 20 // kB/s, the server's limits of MAX_RATE
)

// Options say what to copy, and where to. Only Dir is required.
type Options struct {
	// Dir is the new data directory. It must be empty or absent. Its mode
	// becomes 0700, or 0750 when the source allows group access.
	Dir string

	// Label goes into backup_label. Defaults to DefaultLabel.
	Label string

	// FastCheckpoint asks the source for an immediate checkpoint; otherwise
	// the copy waits for a spread one, which takes minutes. A standby makes
	// none: the copy begins at its last restartpoint.
	FastCheckpoint bool

	// Slot is an existing physical slot through which WAL is streamed. It
	// ends at the copy's last position, so a standby started from the copy
	// finds its WAL there. Empty means a temporary slot of our own.
	Slot string

	// NoSlot streams without any slot. The copy then fails when the source
	// recycles WAL faster than it is read.
	NoSlot bool

	// TablespaceMap says where a tablespace's directory goes. An empty answer,
	// or a nil func, means its location on the source. The directory must be
	// empty or absent, and absolute.
	TablespaceMap func(oid uint32, location string) string

	// OnTablespace is called before a directory outside Dir is made or filled,
	// so that the caller can remember to remove it. An error ends the copy.
	OnTablespace func(path string) error

	// MaxRate limits the transfer, in kB/s, 32 to 1048576. 0 is no limit.
	MaxRate int

	// Manifest asks for a backup_manifest with this checksum algorithm, as
	// pg_verifybackup reads it: NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512.
	// Empty asks for no manifest, which saves the source the work.
	Manifest string

	// NoVerifyChecksums stops the source from checking the data checksums of
	// the pages it reads. When checked, a bad page ends the copy with an error.
	NoVerifyChecksums bool

	// ApplicationName names both connections. It must not be listed in the
	// source's synchronous_standby_names: a copy would then acknowledge
	// commits. Defaults to DefaultApplicationName.
	ApplicationName string

	// WALTimeout is how long the source may be silent on the WAL connection
	// before the copy is given up. Defaults to DefaultWALTimeout.
	WALTimeout time.Duration

	// NoSync leaves the files to the operating system: faster, and worthless
	// after a power failure.
	NoSync bool

	// Progress is called from one goroutine of its own, about ten times a
	// second, and once more at the end. It never runs after Run has returned.
	Progress func(Progress)
}

// Phase names what a running copy does.
type Phase string

// The phases, in their order.
const (
	PhaseConnect    Phase = "connecting"
	PhaseCheckpoint Phase = "waiting for checkpoint"
	PhaseCopy       Phase = "copying"
	PhaseWAL        Phase = "waiting for WAL"
	PhaseSync       Phase = "syncing"
	PhaseDone       Phase = "done"
)

// Progress is a snapshot of a running copy.
type Progress struct {
	Phase       Phase
	Bytes       int64 // of file contents received, WAL not counted
	TotalBytes  int64 // the source's estimate; it can be a little off; 0 is unknown
	Files       int   // complete files
	WALBytes    int64 // of WAL received
	Tablespace  int   // which tablespace, from 1; 0 before the first
	Tablespaces int   // how many there are, the main directory counted
}

// Result describes a finished copy.
type Result struct {
	SystemIdentifier uint64
	Timeline         wal.Timeline // at the end of the copy
	Start, Stop      wal.LSN      // consistent once replayed from Start to Stop
	ServerVersion    int          // the source's major version
	Bytes            int64        // of file contents, WAL not counted
	Files            int          // WAL segments not counted
	WALBytes         int64
	Tablespaces      map[uint32]string // oid: directory outside Dir
	Elapsed          time.Duration
}

func (o Options) withDefaults() Options {
	if o.Label == "" {
		o.Label = DefaultLabel
	}
	if o.ApplicationName == "" {
		o.ApplicationName = DefaultApplicationName
	}
	if o.WALTimeout == 0 {
		o.WALTimeout = DefaultWALTimeout
	}
	return o
}

func (o Options) validate() error {
	var faults []error
	if o.Dir == "" {
		faults = append(faults, errors.New("option Dir is empty"))
	}
	if o.MaxRate != 0 && (o.MaxRate < minRate || o.MaxRate > maxRate) {
		faults = append(faults, fmt.Errorf("option MaxRate is %d, want 0 or %d to %d", o.MaxRate, minRate, maxRate))
	}
	if o.Slot != "" && o.NoSlot {
		faults = append(faults, fmt.Errorf("option Slot is %q and NoSlot is set", o.Slot))
	}
	switch o.Manifest {
	case "", "NONE", "CRC32C", "SHA224", "SHA256", "SHA384", "SHA512":
	default:
		faults = append(faults, fmt.Errorf("option Manifest is %q, want NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512", o.Manifest))
	}
	if o.WALTimeout < 0 {
		faults = append(faults, fmt.Errorf("option WALTimeout is %v, want more than 0", o.WALTimeout))
	}
	if _, err := quoteLiteral(o.Label); err != nil {
		faults = append(faults, fmt.Errorf("option Label: %w", err))
	}
	if err := checkSlotName(o.Slot); o.Slot != "" && err != nil {
		faults = append(faults, fmt.Errorf("option Slot: %w", err))
	}
	return errors.Join(faults...)
}

// Run copies the server that cfg leads to. The role needs REPLICATION, and
// pg_hba.conf must allow it a replication connection. Run changes nothing in
// cfg; its target_session_attrs is not looked at, the first host that answers
// is the source.
//
// When ctx ends, Run returns at once with its cause. Whatever the outcome, its
// goroutines have ended and its connections are closed. On failure what was
// written stays behind, without a global/pg_control; the caller removes it.
func Run(ctx context.Context, cfg *pgconn.Config, o Options) (Result, error) {
	began := time.Now()
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Result{}, fmt.Errorf("check backup options: %w", err)
	}
	if err := checkEmpty(o.Dir); err != nil {
		return Result{}, err
	}
	parent := ctx
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)

	b := &backup{o: o, cancel: cancel}
	stopProgress := b.meter.report(o.Progress)
	res, err := b.run(ctx, cfg)
	stopProgress()
	if err != nil {
		switch {
		case parent.Err() != nil:
			err = fmt.Errorf("copy source (%s): %w", b.meter.snapshot().Phase, context.Cause(parent))
		case ctx.Err() != nil:
			err = context.Cause(ctx) // the first failure; err is its echo
		}
		return Result{}, err
	}
	res.Elapsed = time.Since(began)
	return res, nil
}

// backup is one Run. It belongs to Run's goroutine; the WAL goroutine touches
// only its walStream and the meter.
type backup struct {
	o      Options
	cancel context.CancelCauseFunc
	meter  meter

	source source
	target *target
	res    Result
}

func (b *backup) run(ctx context.Context, cfg *pgconn.Config) (_ Result, err error) {
	pin := newPin(cfg, b.o.ApplicationName)
	main, err := pin.dial(ctx)
	if err != nil {
		return Result{}, explainConnect(ctx, cfg, fmt.Errorf("connect to source: %w", err))
	}
	defer func() { main.close(err != nil) }()
	if b.source, err = identify(main); err != nil {
		return Result{}, fmt.Errorf("identify source: %w", err)
	}
	walConn, err := pin.dial(ctx)
	if err != nil {
		return Result{}, explainConnect(ctx, cfg, fmt.Errorf("connect to source for WAL: %w", err))
	}
	defer func() { walConn.close(err != nil) }()
	// Some versions stream only after it was asked; and a proxy may have led
	// us to two servers.
	if other, err := identify(walConn); err != nil {
		return Result{}, fmt.Errorf("identify source of WAL: %w", err)
	} else if other.systemID != b.source.systemID {
		return Result{}, fmt.Errorf("identify source of WAL: system identifier is %d, that of the data %d", other.systemID, b.source.systemID)
	}
	// The slot comes before the backup, so there is no moment in which a
	// checkpoint of the source could recycle the first segment.
	slot := b.o.Slot
	if slot == "" && !b.o.NoSlot {
		if slot, err = createTemporarySlot(walConn); err != nil {
			return Result{}, err
		}
	}

	if b.target, err = newTarget(b.o, b.source, &b.meter); err != nil {
		return Result{}, err
	}
	defer b.target.close()
	b.meter.setPhase(PhaseCheckpoint)
	spaces, err := b.start(main)
	if err != nil {
		main.cancelCommand(ctx)
		return Result{}, fmt.Errorf("start backup: %w", err)
	}
	stream := &walStream{
		conn: walConn, slot: slot, target: b.target, source: b.source,
		timeline: b.res.Timeline, start: b.res.Start, timeout: b.o.WALTimeout, meter: &b.meter,
	}
	var wg sync.WaitGroup
	var walErr error // written by the WAL goroutine, read after wg.Wait
	wg.Go(func() {
		if walErr = stream.run(); walErr != nil {
			b.cancel(walErr) // ends the copy
		}
	})
	if err := b.copy(main, spaces); err != nil {
		b.cancel(err) // ends the stream
		wg.Wait()
		return Result{}, err
	}
	b.meter.setPhase(PhaseWAL)
	stream.stopAt(b.res.Stop)
	wg.Wait()
	if walErr != nil {
		return Result{}, walErr
	}
	b.meter.setPhase(PhaseSync)
	if err := b.target.finish(ctx); err != nil {
		return Result{}, err
	}
	b.meter.setPhase(PhaseDone)
	b.res.SystemIdentifier, b.res.ServerVersion = b.source.systemID, b.source.major
	b.res.Bytes, b.res.WALBytes = b.meter.bytes.Load(), b.meter.walBytes.Load()
	b.res.Files, b.res.Tablespaces = int(b.meter.files.Load()), b.target.outside
	return b.res, nil
}

// checkEmpty refuses a directory that holds anything.
func checkEmpty(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into target directory: %w", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if len(names) > 0 {
		return fmt.Errorf("use directory %s: %w", dir, ErrNotEmpty)
	}
	if err != nil && !isEOF(err) {
		return fmt.Errorf("look into target directory: %w", err)
	}
	return nil
}
