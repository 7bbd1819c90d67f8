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

// FirstRecord is where the first record begins in log, which begins with a page
// and is whole pages but for the last. false where there is none: what is there
// belongs to a record that began before.
func FirstRecord(log []byte, start LSN, segSize uint32) (LSN, bool) {
	if segSize == 0 {
		segSize = DefaultSegmentSize
	}
	for page := 0; page+firstPageHeader <= len(log); page += pageSize {
		at := start + LSN(page)
		if !IsPage(log[page:], at) {
			return 0, false
		}
		header := LSN(pageHeader)
		if at%LSN(segSize) == 0 {
			header = firstPageHeader
		}
		const continues = 0x0001 // of the page's flags
		if binary.LittleEndian.Uint16(log[page+2:])&continues == 0 {
			return at + header, true
		}
		if rest := (LSN(binary.LittleEndian.Uint32(log[page+16:])) + 7) &^ 7; header+rest < pageSize {
			return at + header + rest, true
		}
	}
	return 0, false
}

// RecordAt is where a record that follows on end begins: behind the header of a
// page that begins there.
func RecordAt(end LSN, segSize uint32) LSN {
	if segSize == 0 {
		segSize = DefaultSegmentSize
	}
	switch {
	case end%LSN(segSize) == 0:
		return end + firstPageHeader
	case end%pageSize == 0:
		return end + pageHeader
	}
	return end
}

// RecordChecksum is that of the record with this header, of 24 bytes; 0 where there is none.
func RecordChecksum(header []byte) uint32 {
	if len(header) < recordHeader || binary.LittleEndian.Uint32(header) < recordHeader {
		return 0
	}
	return binary.LittleEndian.Uint32(header[20:])
}
