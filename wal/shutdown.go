package wal

import "encoding/binary"

// The record of a checkpoint, as every version from 13 to 18 writes it: a header,
// two bytes that announce the data, the data, and padding to 8 bytes.
const (
	recordHeader   = 24
	checkpointData = 88
	checkpointSize = (recordHeader + 2 + checkpointData + 7) &^ 7

	pageSize        = 8192
	pageHeader      = 24
	firstPageHeader = 40 // of a segment
)

// EndsWithShutdown reports whether the last record before end is the checkpoint
// that a server writes when it is shut down in order, after everything else.
// tail is the log right before end, with its page headers, at least 160 bytes
// long; segSize is that of SegmentName. What can not be read as such a record is none.
func EndsWithShutdown(tail []byte, end LSN, segSize uint32) bool {
	if segSize == 0 {
		segSize = DefaultSegmentSize
	}
	start := end - LSN(len(tail))
	var record []byte
	for i := 0; i < len(tail); {
		at := start + LSN(i)
		switch {
		case at%LSN(segSize) == 0:
			i += firstPageHeader
		case at%pageSize == 0:
			i += pageHeader
		default:
			next := int(pageSize - at%pageSize)
			record = append(record, tail[i:min(len(tail), i+next)]...)
			i += next
		}
	}
	if len(record) < checkpointSize {
		return false
	}
	record = record[len(record)-checkpointSize:]
	const (
		resourceManagerXLOG = 0
		checkpointShutdown  = 0x00
		infoMask            = 0xF0 // the upper half is the resource manager's
		shortData           = 255
	)
	return binary.LittleEndian.Uint32(record) == recordHeader+2+checkpointData &&
		record[16]&infoMask == checkpointShutdown && record[17] == resourceManagerXLOG &&
		record[recordHeader] == shortData && record[recordHeader+1] == checkpointData
}
