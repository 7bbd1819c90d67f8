package basebackup

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeoutSize is after how many bytes of a file its writing to disk begins,
// while the copy goes on: what is left for the end is short then.
const writeoutSize = 8 << 20

// startWriteout begins to write a range of f to disk. It promises nothing; the
// sync at the end does.
func startWriteout(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// writeAll writes all bufs in one call of the kernel, or few. bufs is used up.
func writeAll(f *os.File, bufs [][]byte) (written int64, err error) {
	fd := int(f.Fd())
	for len(bufs) > 0 {
		n, err := unix.Writev(fd, bufs)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return written, &os.PathError{Op: "write", Path: f.Name(), Err: err}
		}
		written += int64(n)
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			bufs[0] = bufs[0][n:]
		}
	}
	return written, nil
}

// nap lets a fast source get ahead of us, for as long as it takes it to send
// some 200 kB. Being woken for every 32 kB instead costs both sides a tenth of
// their time. time.Sleep would take a millisecond.
func nap() { _ = unix.Nanosleep(&unix.Timespec{Nsec: 200_000}, nil) }

// syncer syncs each file system of the copy once, as a whole: one flush of the
// disk where a file at a time would need thousands. The kernel reports a failed
// write to every descriptor that was open before it, so they are opened first.
type syncer struct {
	enabled bool
	disks   map[uint64]*os.File // by device number
}

func newSyncer(enabled bool) *syncer {
	return &syncer{enabled: enabled, disks: map[uint64]*os.File{}}
}

// add includes the file system of dir.
func (s *syncer) add(dir string) error {
	if !s.enabled {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return &os.PathError{Op: "fstat", Path: dir, Err: err}
	}
	if _, ok := s.disks[uint64(st.Dev)]; ok {
		return f.Close()
	}
	s.disks[uint64(st.Dev)] = f
	return nil
}

// sync returns when everything in dirs is on disk.
func (s *syncer) sync([]string) error {
	for _, f := range s.disks {
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return &os.PathError{Op: "syncfs", Path: f.Name(), Err: err}
		}
	}
	return nil
}

func (s *syncer) close() {
	for _, f := range s.disks {
		f.Close()
	}
}
