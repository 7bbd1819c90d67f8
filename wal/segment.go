package wal

import (
	"fmt"
	"strconv"
)

// DefaultSegmentSize is the size of a WAL segment file, in bytes, unless initdb
// was told otherwise with --wal-segsize.
const DefaultSegmentSize = 16 << 20

// SegmentName returns the name of the WAL segment file that holds the byte at
// lsn. segSize is in bytes, a power of two from 1 MiB to 1 GiB; 0 stands for
// DefaultSegmentSize. (pg_walfile_name of older servers differs at a segment's
// first byte: it names the segment before.)
func SegmentName(t Timeline, lsn LSN, segSize uint32) string {
	if segSize == 0 {
		segSize = DefaultSegmentSize
	}
	return fmt.Sprintf("%08X%08X%08X", uint32(t), uint32(lsn>>32), uint32(lsn)/segSize)
}

// ParseSegmentName returns the timeline and the first LSN of a WAL segment file.
// It refuses everything else that lies in pg_wal, such as .history, .partial and
// .backup files, and names that no segment of segSize bytes has.
func ParseSegmentName(name string, segSize uint32) (Timeline, LSN, error) {
	if segSize == 0 {
		segSize = DefaultSegmentSize
	}
	if len(name) != 24 {
		return 0, 0, fmt.Errorf("parse WAL segment name %q: want 24 hexadecimal digits", name)
	}
	var part [3]uint64
	for i := range part {
		v, err := strconv.ParseUint(name[8*i:8*i+8], 16, 32)
		if err != nil {
			return 0, 0, fmt.Errorf("parse WAL segment name %q: want 24 hexadecimal digits", name)
		}
		part[i] = v
	}
	start := part[2] * uint64(segSize)
	if start >= 1<<32 {
		return 0, 0, fmt.Errorf("parse WAL segment name %q: no such segment with %d bytes each", name, segSize)
	}
	return Timeline(part[0]), LSN(part[1]<<32 | start), nil
}

// HistoryFileName returns the name of the file that holds the history of t.
func HistoryFileName(t Timeline) string { return fmt.Sprintf("%08X.history", uint32(t)) }
