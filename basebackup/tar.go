package basebackup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

const tarBlock = 512

// The tar entries that a server sends.
const (
	tarFile      = '0'
	tarSymlink   = '2'
	tarDirectory = '5'
)

// tarHeader is one entry of a tar stream.
type tarHeader struct {
	name string // relative, clean, inside the archive's directory
	link string // of a symbolic link, as sent
	kind byte
	mode uint32
	size int64
}

var errTarHeader = errors.New("not a tar header")

// parseTarHeader reads a ustar header as a PostgreSQL server writes it: names of
// up to 99 bytes (it refuses to send longer ones, so there are no extension
// headers), numbers in octal, or in base 256 when they do not fit.
func parseTarHeader(b []byte) (h tarHeader, err error) {
	var sum int64
	for i, c := range b[:tarBlock] {
		if i >= 148 && i < 156 {
			c = ' ' // the checksum counts itself as blanks
		}
		sum += int64(c)
	}
	if want, err := tarNumber(b[148:156]); err != nil || want != sum {
		return h, fmt.Errorf("read tar header: %w: its checksum is wrong", errTarHeader)
	}
	mode, err := tarNumber(b[100:108])
	if err != nil {
		return h, fmt.Errorf("read tar header: mode: %w", err)
	}
	if h.size, err = tarNumber(b[124:136]); err != nil {
		return h, fmt.Errorf("read tar header: size: %w", err)
	}
	h.mode, h.kind = uint32(mode&0o7777), b[156]
	name, link := tarString(b[:100]), tarString(b[157:257])
	if bytes.Equal(b[257:263], []byte("ustar\x00")) {
		if prefix := tarString(b[345:500]); prefix != "" {
			name = prefix + "/" + name
		}
	}
	switch h.kind {
	case tarFile, 0:
		h.kind = tarFile
	case tarSymlink, tarDirectory:
		h.size = 0
	default:
		return h, fmt.Errorf("read tar header of %q: unexpected entry type %q", name, h.kind)
	}
	h.link = link
	if h.kind == tarSymlink {
		name = strings.TrimSuffix(name, "/") // the server ends them as it does directories
	}
	h.name, err = safeName(name, h.kind == tarDirectory)
	return h, err
}

// safeName returns a clean relative name, or ErrUnsafePath. A directory may be
// ".", the archive's own.
func safeName(name string, dir bool) (string, error) {
	clean := strings.TrimPrefix(name, "./")
	if dir {
		clean = strings.TrimSuffix(clean, "/")
		if clean == "" && name != "" || clean == "." {
			return ".", nil
		}
	}
	if !filepath.IsLocal(clean) || filepath.Clean(clean) != clean || clean == "." {
		return "", fmt.Errorf("%w: %q", ErrUnsafePath, name)
	}
	return clean, nil
}

func tarString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func tarNumber(b []byte) (int64, error) {
	if b[0] == 0x80 { // base 256, big-endian, in the last 8 bytes
		v := binary.BigEndian.Uint64(b[len(b)-8:])
		if len(b) < 9 || v > 1<<62 {
			return 0, errTarHeader
		}
		return int64(v), nil
	}
	var v int64
	digits := bytes.Trim(b, " \x00")
	for _, c := range digits {
		if c < '0' || c > '7' {
			return 0, errTarHeader
		}
		v = v<<3 | int64(c-'0')
	}
	if len(digits) == 0 {
		return 0, errTarHeader
	}
	return v, nil
}

// untar is fed one tar stream piece by piece and hands its entries to an
// unpacker. A decompressor would stand in front of Write.
type untar struct {
	to     unpacker
	header []byte // the part of a header seen so far
	left   int64  // contents of the current file still to come
	pad    int    // then zeros up to the next block
	open   bool
}

// unpacker takes the entries of one archive.
type unpacker interface {
	entry(h tarHeader) error
	contents(p []byte) error // of the last entry; p is valid only during the call
	endFile() error
}

// Write consumes all of p. p is not kept.
func (u *untar) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		switch {
		case u.left > 0:
			k := int(min(u.left, int64(len(p))))
			if err := u.to.contents(p[:k]); err != nil {
				return 0, err
			}
			u.left -= int64(k)
			p = p[k:]
			if u.left == 0 {
				if err := u.end(); err != nil {
					return 0, err
				}
			}
		case u.pad > 0:
			k := min(u.pad, len(p))
			u.pad -= k
			p = p[k:]
		default:
			k := min(tarBlock-len(u.header), len(p))
			u.header = append(u.header, p[:k]...)
			p = p[k:]
			if len(u.header) == tarBlock {
				if err := u.begin(); err != nil {
					return 0, err
				}
				u.header = u.header[:0]
			}
		}
	}
	return n, nil
}

func (u *untar) begin() error {
	if bytes.Count(u.header, []byte{0}) == tarBlock {
		return nil // the end mark, which some versions send; nothing follows
	}
	h, err := parseTarHeader(u.header)
	if err != nil {
		return err
	}
	if err := u.to.entry(h); err != nil {
		return err
	}
	if h.kind != tarFile {
		return nil
	}
	u.open, u.left = true, h.size
	u.pad = int(-h.size & (tarBlock - 1))
	if h.size == 0 {
		return u.end()
	}
	return nil
}

func (u *untar) end() error {
	u.open = false
	return u.to.endFile()
}

// close reports an archive that ended in the middle.
func (u *untar) close() error {
	if u.open || len(u.header) > 0 {
		return errors.New("read tar stream: it ends in the middle of a file")
	}
	return nil
}
