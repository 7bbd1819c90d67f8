package basebackup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// archive makes a tar stream with the standard library's writer.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Format = tar.FormatUSTAR
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Mode = 0o600
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// unpack feeds a stream to a new target with the tablespace 16400, in pieces of
// n bytes, into the data directory or (in != 0) the tablespace.
func unpack(t testing.TB, b []byte, n int, in uint32) (dir string, err error) {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "outside"), []byte("precious"), 0o600))
	dir = filepath.Join(root, "data")
	space := tablespace{16400, filepath.Join(root, "space")}
	to, err := newTarget(Options{Dir: dir, NoSync: true}, source{}, &meter{})
	require.NoError(t, err)
	defer to.close()
	require.NoError(t, to.addTablespace(space))
	if in == 0 {
		space = tablespace{}
	}
	require.NoError(t, to.enter(space))
	u := &untar{to: to}
	for len(b) > 0 {
		k := min(n, len(b))
		if _, err := u.Write(b[:k]); err != nil {
			return dir, err
		}
		if err := to.flush(); err != nil {
			return dir, err
		}
		b = b[k:]
	}
	return dir, u.close()
}

func TestUntar_PiecesOfAnySize(t *testing.T) {
	t.Parallel()
	b := archive(t, tar.Header{Name: "base/", Typeflag: tar.TypeDir}, tar.Header{Name: "base/1", Size: 1000},
		tar.Header{Name: "empty"}, tar.Header{Name: "base/block", Size: 512}, tar.Header{Name: "global/", Typeflag: tar.TypeDir},
		tar.Header{Name: controlFile, Size: 7})
	for _, n := range []int{1, 7, 511, 512, 513, 1 << 20} {
		dir, err := unpack(t, b, n, 0)
		require.NoError(t, err)
		for name, size := range map[string]int64{"base/1": 1000, "empty": 0, "base/block": 512, controlUnfinished: 7} {
			info, err := os.Stat(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Equal(t, size, info.Size())
		}
		require.NoFileExists(t, filepath.Join(dir, controlFile))
	}
}

func TestUntar_HostileStreams(t *testing.T) {
	t.Parallel()
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
	for name, tc := range map[string]struct {
		entries []tar.Header
		in      uint32
		want    error
	}{
		"absolute file":                 {entries: []tar.Header{{Name: "/tmp/x", Size: 1}}, want: ErrUnsafePath},
		"dot dot file":                  {entries: []tar.Header{{Name: "../outside", Size: 1}}, want: ErrUnsafePath},
		"dot dot inside":                {entries: []tar.Header{dir("base"), {Name: "base/../../outside", Size: 1}}, want: ErrUnsafePath},
		"dot dot that stays":            {entries: []tar.Header{{Name: "base/../x", Size: 1}}, want: ErrUnsafePath},
		"doubled slash":                 {entries: []tar.Header{{Name: "base//x", Size: 1}}, want: ErrUnsafePath},
		"dot dot directory":             {entries: []tar.Header{dir("..")}, want: ErrUnsafePath},
		"absolute directory":            {entries: []tar.Header{dir("/tmp/x")}, want: ErrUnsafePath},
		"link elsewhere":                {entries: []tar.Header{link("pg_wal2", "/etc")}, want: ErrUnsafePath},
		"tablespace link, wrong target": {entries: []tar.Header{dir("pg_tblspc"), link("pg_tblspc/16400", "/etc")}, want: ErrUnsafePath},
		"tablespace link, unknown oid":  {entries: []tar.Header{dir("pg_tblspc"), link("pg_tblspc/16401", "/etc")}, want: ErrUnsafePath},
		"link in a tablespace":          {entries: []tar.Header{link("16400", "/etc")}, in: 16400, want: ErrUnsafePath},
		"dot dot in a tablespace":       {entries: []tar.Header{{Name: "../outside", Size: 1}}, in: 16400, want: ErrUnsafePath},
		"hard link":                     {entries: []tar.Header{{Name: "x", Linkname: "../outside", Typeflag: tar.TypeLink}}},
		"device":                        {entries: []tar.Header{{Name: "x", Typeflag: tar.TypeChar}}},
		"file twice":                    {entries: []tar.Header{{Name: "x", Size: 1}, {Name: "x", Size: 1}}, want: os.ErrExist},
		"control file under its other name": {
			entries: []tar.Header{dir("global"), {Name: controlUnfinished, Size: 1}, {Name: controlFile, Size: 1}}, want: os.ErrExist,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := unpack(t, archive(t, tc.entries...), 4096, tc.in)
			require.Error(t, err)
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
			}
			b, err := os.ReadFile(filepath.Join(dir, "..", "outside"))
			require.NoError(t, err)
			require.Equal(t, "precious", string(b))
		})
	}
}

// A symbolic link that the source was allowed to make does not become a way out
// of the data directory.
func TestUntar_FilesDoNotGoThroughATablespaceLink(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	to, err := newTarget(Options{Dir: filepath.Join(root, "data"), NoSync: true}, source{}, &meter{})
	require.NoError(t, err)
	defer to.close()
	location := filepath.Join(root, "space")
	require.NoError(t, to.addTablespace(tablespace{16400, location}))
	require.NoError(t, to.enter(tablespace{}))
	u := &untar{to: to}
	_, err = u.Write(archive(t, tar.Header{Name: "pg_tblspc/", Typeflag: tar.TypeDir},
		tar.Header{Name: "pg_tblspc/16400", Linkname: location, Typeflag: tar.TypeSymlink},
		tar.Header{Name: "pg_tblspc/16400/x", Size: 1}))
	require.Error(t, err)
	require.NoFileExists(t, filepath.Join(location, "x"))
}

func TestUntar_StreamThatEndsInTheMiddle(t *testing.T) {
	t.Parallel()
	b := archive(t, tar.Header{Name: "x", Size: 1000})
	for _, n := range []int{100, 600} {
		_, err := unpack(t, b[:n], 64, 0)
		require.ErrorContains(t, err, "in the middle")
	}
}

func TestParseTarHeader_SizesBeyondOctal(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "huge", Size: 9 << 30, Mode: 0o640, Format: tar.FormatGNU}))
	h, err := parseTarHeader(b.Bytes())
	require.NoError(t, err)
	require.Equal(t, tarHeader{name: "huge", kind: tarFile, mode: 0o640, size: 9 << 30}, h)
	b.Bytes()[0]++
	_, err = parseTarHeader(b.Bytes())
	require.ErrorIs(t, err, errTarHeader)
}

// FuzzParseTarHeader: whatever comes, a name that is accepted is a local one,
// and the standard library reads the same from the header.
func FuzzParseTarHeader(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "base/1/1234", Size: 8192})[:tarBlock])
	f.Add(archive(f, tar.Header{Name: "pg_tblspc/16400", Linkname: "/x", Typeflag: tar.TypeSymlink})[:tarBlock])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != tarBlock {
			return
		}
		h, err := parseTarHeader(b)
		if err != nil {
			return
		}
		if h.size < 0 || !filepath.IsLocal(h.name) || h.name != filepath.Clean(h.name) {
			t.Fatalf("accepted %+v", h)
		}
		got, err := tar.NewReader(io.MultiReader(bytes.NewReader(b), bytes.NewReader(make([]byte, 2*tarBlock)))).Next()
		if err == nil && h.kind == tarFile && got.Typeflag == tar.TypeReg && got.Size != h.size {
			t.Fatalf("size is %d, the standard library says %d", h.size, got.Size)
		}
	})
}

// lex reads a quoted token as the server's replication lexer does.
func lex(s string, quote byte) (string, error) {
	if len(s) < 2 || s[0] != quote {
		return "", errors.New("no opening quote")
	}
	var out strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != quote {
			out.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == quote {
			out.WriteByte(quote)
			i++
			continue
		}
		if i != len(s)-1 {
			return "", fmt.Errorf("%q follows the token", s[i+1:])
		}
		return out.String(), nil
	}
	return "", errors.New("no closing quote")
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "plain", "it's", `"`, `''`, `\'`, "'); DROP", "\x00", "\xff\xfe", "'\n'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for quote, fn := range map[byte]func(string) (string, error){'\'': quoteLiteral, '"': quoteIdentifier} {
			q, err := fn(s)
			if bad := strings.Contains(s, "\x00") || quote == '"' && s == ""; bad != (err != nil) {
				t.Fatalf("quote %q: %v", s, err)
			}
			if err != nil {
				continue
			}
			got, err := lex(q, quote)
			if err != nil || got != s {
				t.Fatalf("quoted %q as %s, which reads as %q, %v", s, q, got, err)
			}
		}
		if checkSlotName(s) == nil && strings.ContainsAny(s, `'"\ ;`) {
			t.Fatalf("slot name %q is accepted", s)
		}
	})
}

func TestBaseBackupCommand(t *testing.T) {
	t.Parallel()
	all := Options{Label: "it's", FastCheckpoint: true, MaxRate: 100, Manifest: "CRC32C", NoVerifyChecksums: true, Progress: func(Progress) {}}
	for major, want := range map[int]string{
		13: "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 100 NOVERIFY_CHECKSUMS MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'",
		15: "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT 0, MAX_RATE 100, VERIFY_CHECKSUMS 0, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')",
	} {
		got, err := baseBackupCommand(all, major)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}
