package wal_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/wal"
)

// writtenLog is a log from at on with records of these lengths, as PostgreSQL
// lays them out, and where each of them ends.
func writtenLog(at wal.LSN, segSize uint32, lengths []int) (log []byte, ends []wal.LSN) {
	put := func(b []byte) {
		for _, c := range b {
			switch lsn := at + wal.LSN(len(log)); {
			case lsn%wal.LSN(segSize) == 0:
				log = append(log, make([]byte, 40)...)
			case lsn%8192 == 0:
				log = append(log, make([]byte, 24)...)
			}
			log = append(log, c)
		}
	}
	for _, n := range lengths {
		record := make([]byte, n)
		binary.LittleEndian.PutUint32(record, uint32(n))
		for i := 4; i < n; i++ {
			record[i] = 0xEE
		}
		put(record)
		for len(log)%8 != 0 {
			log = append(log, 0)
		}
		ends = append(ends, at+wal.LSN(len(log)))
	}
	return log, ends
}

// Whatever the log is cut off at, the last whole record before is found.
func TestLastRecordEnd(t *testing.T) {
	t.Parallel()
	const segSize = 1 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		at := wal.LSN(3*segSize - rng.IntN(40000)&^7)
		if rng.IntN(4) == 0 {
			at = wal.PageStart(at)
		}
		var lengths []int
		for range 1 + rng.IntN(12) {
			lengths = append(lengths, 24+rng.IntN([]int{100, 3000, 30000}[rng.IntN(3)]))
		}
		log, ends := writtenLog(at, segSize, lengths)
		for range 20 {
			cut, want := rng.IntN(len(log)+1), at
			for _, end := range ends {
				if int(end-at) <= cut {
					want = end
				}
			}
			got := wal.LastRecordEnd(log[:cut], at, segSize)
			if got > want && int(got-at) <= cut+7 { // whole but for its padding
				continue
			}
			require.Equal(t, want, got, "at %s, cut off after %d of %v", at, cut, lengths)
		}
	}
}

// A segment that is left early ends in zeros.
func TestLastRecordEnd_AfterASwitch(t *testing.T) {
	t.Parallel()
	const segSize = 1 << 20
	log, ends := writtenLog(segSize+40, segSize, []int{100, 24})
	log = append(log, make([]byte, 2*segSize-int(ends[1]))...)
	require.Equal(t, ends[1], wal.LastRecordEnd(log, segSize+40, segSize))
	next, more := writtenLog(2*segSize, segSize, []int{50})
	require.Equal(t, more[0], wal.LastRecordEnd(append(log, next...), segSize+40, segSize))
}

func TestIsPage(t *testing.T) {
	t.Parallel()
	b := make([]byte, 24)
	binary.LittleEndian.PutUint64(b[8:], 0x5000000)
	require.True(t, wal.IsPage(b, 0x5000000))
	require.False(t, wal.IsPage(b, 0x4000000))
	require.False(t, wal.IsPage(b[:8], 0x5000000))
	require.Equal(t, wal.LSN(0x5002000), wal.PageStart(0x5002FFF))
}
