package basebackup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/wal"
)

// source is what a connection tells about its server.
type source struct {
	systemID    uint64
	timeline    wal.Timeline // now; that of the backup comes with its start
	major       int
	segSize     uint32
	groupAccess bool
}

func identify(c *conn) (s source, err error) {
	_ = c.net.SetDeadline(time.Now().Add(connectTimeout))
	defer func() { _ = c.net.SetDeadline(time.Time{}) }()
	version := c.parameters["server_version"]
	s.major, err = strconv.Atoi(version[:len(version)-len(strings.TrimLeft(version, "0123456789"))])
	if err != nil || s.major < 13 {
		return s, fmt.Errorf("%w: server_version is %q", ErrVersion, version)
	}
	row, err := c.command("IDENTIFY_SYSTEM", 2)
	if err != nil {
		return s, err
	}
	if s.systemID, err = strconv.ParseUint(string(row[0]), 10, 64); err != nil {
		return s, fmt.Errorf("read system identifier: %w", err)
	}
	if s.timeline, err = parseTimeline(row[1]); err != nil {
		return s, err
	}
	if row, err = c.command("SHOW wal_segment_size", 1); err != nil {
		return s, err
	}
	if s.segSize, err = parseSegmentSize(string(row[0])); err != nil {
		return s, err
	}
	if row, err = c.command("SHOW data_directory_mode", 1); err != nil {
		return s, err
	}
	mode, err := strconv.ParseUint(string(row[0]), 8, 32)
	s.groupAccess = err == nil && mode&0o050 == 0o050
	return s, nil
}

func parseTimeline(b []byte) (wal.Timeline, error) {
	t, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil || t == 0 {
		return 0, fmt.Errorf("read timeline %q: want a positive number", b)
	}
	return wal.Timeline(t), nil
}

// parseSegmentSize reads a number of bytes as SHOW prints it, such as "16MB".
func parseSegmentSize(s string) (uint32, error) {
	digits := strings.TrimRight(s, "BkMG")
	n, err := strconv.ParseUint(digits, 10, 32)
	switch s[len(digits):] {
	case "kB":
		n <<= 10
	case "MB":
		n <<= 20
	case "GB":
		n <<= 30
	case "B":
	default:
		err = errors.New("unknown unit")
	}
	if err == nil && (n < 1<<20 || n > 1<<30 || n&(n-1) != 0) {
		err = errors.New("want a power of two from 1 MB to 1 GB")
	}
	if err != nil {
		return 0, fmt.Errorf("read wal_segment_size %q: %w", s, err)
	}
	return uint32(n), nil
}

// baseBackupCommand returns the command for the given major version: 15 took
// parentheses around the options and one COPY for all archives.
func baseBackupCommand(o Options, major int) (string, error) {
	label, err := quoteLiteral(o.Label)
	if err != nil {
		return "", fmt.Errorf("quote label: %w", err)
	}
	opts := []string{"LABEL " + label}
	add := func(on bool, old, new string) {
		if !on {
			return
		}
		if major >= 15 {
			old = new
		}
		opts = append(opts, old)
	}
	add(o.Progress != nil, "PROGRESS", "PROGRESS")
	add(o.FastCheckpoint, "FAST", "CHECKPOINT 'fast'")
	add(true, "NOWAIT", "WAIT 0") // archiving is not our concern: WAL is streamed
	add(o.MaxRate != 0, fmt.Sprintf("MAX_RATE %d", o.MaxRate), fmt.Sprintf("MAX_RATE %d", o.MaxRate))
	add(o.NoVerifyChecksums, "NOVERIFY_CHECKSUMS", "VERIFY_CHECKSUMS 0")
	manifest := fmt.Sprintf("MANIFEST_CHECKSUMS '%s'", o.Manifest)
	add(o.Manifest != "", "MANIFEST 'yes'", "MANIFEST 'yes'")
	add(o.Manifest != "", manifest, manifest)
	if major >= 15 {
		return "BASE_BACKUP (" + strings.Join(opts, ", ") + ")", nil
	}
	return "BASE_BACKUP " + strings.Join(opts, " "), nil
}

// tablespace is one archive of a backup; oid 0 is the data directory itself.
type tablespace struct {
	oid      uint32
	location string
}

// start begins the backup. It waits for the source's checkpoint.
func (b *backup) start(c *conn) ([]tablespace, error) {
	cmd, err := baseBackupCommand(b.o, b.source.major)
	if err != nil {
		return nil, err
	}
	if err := c.query(cmd); err != nil {
		return nil, err
	}
	if b.res.Start, b.res.Timeline, err = readPosition(c); err != nil {
		return nil, err
	}
	rows, err := c.rows()
	if err != nil {
		return nil, err
	}
	var spaces []tablespace
	for _, r := range rows {
		if len(r) < 3 {
			return nil, fmt.Errorf("read tablespaces: %d columns, want 3", len(r))
		}
		var s tablespace
		if r[0] != nil {
			oid, err := strconv.ParseUint(string(r[0]), 10, 32)
			if err != nil || oid == 0 {
				return nil, fmt.Errorf("read tablespaces: oid %q", r[0])
			}
			s = tablespace{uint32(oid), string(r[1])}
		}
		if kb, err := strconv.ParseInt(string(r[2]), 10, 64); err == nil {
			b.meter.total.Add(kb << 10)
		}
		spaces = append(spaces, s)
	}
	b.meter.tablespaces.Store(int64(len(spaces)))
	return spaces, nil
}

// readPosition reads a result of one LSN and its timeline.
func readPosition(c *conn) (wal.LSN, wal.Timeline, error) {
	rows, err := c.rows()
	if err != nil {
		return 0, 0, err
	}
	if len(rows) != 1 || len(rows[0]) < 2 {
		return 0, 0, errors.New("read backup position: want one row of two columns")
	}
	lsn, err := wal.ParseLSN(string(rows[0][0]))
	if err != nil {
		return 0, 0, err
	}
	t, err := parseTimeline(rows[0][1])
	return lsn, t, err
}

// copy receives all archives, and the position at which the backup ends.
func (b *backup) copy(c *conn, spaces []tablespace) error {
	for _, s := range spaces {
		if err := b.target.addTablespace(s); err != nil {
			return err
		}
	}
	b.meter.setPhase(PhaseCopy)
	c.reuse = b.target.flush
	receive := b.receive
	if b.source.major < 15 {
		receive = b.receiveOld
	}
	if err := receive(c, spaces); err != nil {
		return err
	}
	c.reuse = nil
	var err error
	if b.res.Stop, b.res.Timeline, err = readPosition(c); err != nil {
		return fmt.Errorf("end backup: %w", err)
	}
	if err := c.ready(); err != nil {
		return fmt.Errorf("end backup: %w", err)
	}
	return b.target.complete()
}

// receiveOld reads one COPY per tablespace in the order of their list, and one
// for the manifest.
func (b *backup) receiveOld(c *conn, spaces []tablespace) error {
	for i, s := range spaces {
		if err := c.expect('H'); err != nil {
			return fmt.Errorf("copy data: %w", err)
		}
		u, err := b.archive(i, s)
		if err != nil {
			return err
		}
		if err := drain(c, u.Write); err != nil {
			return fmt.Errorf("copy data: %w", err)
		}
		if err := u.close(); err != nil {
			return err
		}
	}
	if b.o.Manifest == "" {
		return nil
	}
	if err := c.expect('H'); err != nil {
		return fmt.Errorf("copy manifest: %w", err)
	}
	if err := b.target.beginManifest(); err != nil {
		return err
	}
	return drain(c, b.target.manifestWrite)
}

// drain feeds one whole COPY to write.
func drain(c *conn, write func([]byte) (int, error)) error {
	for {
		kind, err := c.next()
		if err != nil {
			return err
		}
		switch kind {
		case 'd':
			if err := drainMessage(c, write); err != nil {
				return err
			}
		case 'c':
			return nil
		default:
			return fmt.Errorf("unexpected message %q", kind)
		}
	}
}

func drainMessage(c *conn, write func([]byte) (int, error)) error {
	for c.body > 0 {
		p, err := c.some()
		if err != nil {
			return err
		}
		if _, err := write(p); err != nil {
			return err
		}
	}
	return nil
}

// receive reads the one COPY of 15 and later, in which the first byte of each
// message says what it is.
func (b *backup) receive(c *conn, spaces []tablespace) error {
	if err := c.expect('H'); err != nil {
		return fmt.Errorf("copy data: %w", err)
	}
	var u *untar
	var write func([]byte) (int, error)
	archives := 0
	for {
		kind, err := c.next()
		if err == nil && kind == 'c' {
			break
		}
		if err == nil && kind != 'd' {
			err = fmt.Errorf("unexpected message %q", kind)
		}
		var what []byte
		if err == nil {
			what, err = c.take(1)
		}
		if err != nil {
			return fmt.Errorf("copy data: %w", err)
		}
		switch what[0] {
		case 'd':
			if write == nil {
				return errors.New("copy data: it comes before its archive")
			}
			if err := drainMessage(c, write); err != nil {
				return fmt.Errorf("copy data: %w", err)
			}
		case 'n':
			if err := closeArchive(u); err != nil {
				return err
			}
			if archives == len(spaces) {
				return fmt.Errorf("copy data: more than %d archives", archives)
			}
			if u, err = b.archive(archives, spaces[archives]); err != nil {
				return err
			}
			write = u.Write
			archives++
		case 'm':
			if err := b.target.beginManifest(); err != nil {
				return err
			}
			write = b.target.manifestWrite
		case 'p': // how much the source has read: we know better
		default:
			return fmt.Errorf("copy data: unexpected kind %q", what[0])
		}
	}
	if archives != len(spaces) {
		return fmt.Errorf("copy data: got %d archives, want %d", archives, len(spaces))
	}
	return closeArchive(u)
}

func closeArchive(u *untar) error {
	if u == nil {
		return nil
	}
	return u.close()
}

// archive begins the i-th archive.
func (b *backup) archive(i int, s tablespace) (*untar, error) {
	b.meter.tablespace.Store(int64(i + 1))
	if err := b.target.enter(s); err != nil {
		return nil, err
	}
	return &untar{to: b.target, header: make([]byte, 0, tarBlock)}, nil
}
