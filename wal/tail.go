package wal

import "encoding/binary"

// PageStart is where the page that holds lsn begins.
func PageStart(lsn LSN) LSN { return lsn - lsn%pageSize }

// IsPage reports whether b begins with the header of the page that begins at
// start: a segment file that was recycled holds older pages.
func IsPage(b []byte, start LSN) bool {
	return len(b) >= 16 && LSN(binary.LittleEndian.Uint64(b[8:])) == start
}

// LastRecordEnd is where the last whole record in log ends, or at where there is
// none. log is what is written of the log from at on, with its page headers; a
// record begins at at, and what follows the last whole one is the beginning of
// another. segSize is that of [SegmentName].
func LastRecordEnd(log []byte, at LSN, segSize uint32) LSN {
	if segSize == 0 {
		segSize = DefaultSegmentSize
	}
	header := func(i int) int {
		switch lsn := at + LSN(i); {
		case lsn%LSN(segSize) == 0:
			return firstPageHeader
		case lsn%pageSize == 0:
			return pageHeader
		}
		return 0
	}
	end := 0
	for {
		i := end + header(end)
		if i+4 > len(log) {
			break
		}
		left := int(binary.LittleEndian.Uint32(log[i:]))
		if left < recordHeader { // nothing follows in this segment: it was left early
			next := int(LSN(segSize) - (at+LSN(end))%LSN(segSize))
			if left != 0 || end+next >= len(log) {
				break
			}
			end += next
			continue
		}
		for {
			room := int(pageSize - (at+LSN(i))%pageSize)
			if left <= room {
				i += left
				break
			}
			i, left = i+room, left-room
			i += header(i)
		}
		if i > len(log) {
			break
		}
		end = (i + 7) &^ 7 // at is aligned, too
	}
	return at + LSN(end)
}
