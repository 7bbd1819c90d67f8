package pgcontrol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pgrepmgr/repmgr/wal"
)

// fixtures returns the control files of real servers, made by testdata/make.sh:
// for each major a standby (NN), a primary stopped, crashed, and recovered onto
// a new timeline.
func fixtures(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.pg_control")
	if err != nil || len(paths) != 24 {
		t.Fatalf("got %d fixtures, %v, want 6 majors x 4 states", len(paths), err)
	}
	all := map[string][]byte{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(p), ".pg_control")] = b
	}
	return all
}

func parse(t testing.TB, b []byte) ControlFile {
	t.Helper()
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// golden reads what pg_controldata printed.
func golden(t *testing.T, name string) map[string]string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.TrimSpace(v)
	}
	return m
}

func TestParse_AgreesWithPgControldata(t *testing.T) {
	t.Parallel()
	for name, b := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			c, want := parse(t, b), golden(t, name)
			hints := map[bool]string{true: "on", false: "off"}[c.WALLogHints]
			for label, got := range map[string]any{
				"pg_control version number":          c.Version,
				"Catalog version number":             c.CatalogVersion,
				"Database system identifier":         c.SystemIdentifier,
				"Database cluster state":             c.State,
				"Latest checkpoint location":         c.Checkpoint,
				"Latest checkpoint's REDO location":  c.Redo,
				"Latest checkpoint's TimeLineID":     c.Timeline,
				"Latest checkpoint's PrevTimeLineID": c.PrevTimeline,
				"Minimum recovery ending location":   c.MinRecoveryPoint,
				"Min recovery ending loc's timeline": c.MinRecoveryTimeline,
				"Data page checksum version":         c.DataChecksums,
				"wal_log_hints setting":              hints,
				"max_connections setting":            c.MaxConnections,
				"max_worker_processes setting":       c.MaxWorkerProcesses,
				"max_wal_senders setting":            c.MaxWALSenders,
				"max_prepared_xacts setting":         c.MaxPreparedXacts,
				"max_locks_per_xact setting":         c.MaxLocksPerTransaction,
				"Database block size":                c.BlockSize,
				"WAL block size":                     c.WALBlockSize,
				"Bytes per WAL segment":              c.WALSegmentSize,
				"Latest checkpoint's REDO WAL file":  wal.SegmentName(c.Timeline, c.Redo, c.WALSegmentSize),
			} {
				if got := fmt.Sprint(got); got != want[label] {
					t.Errorf("%s: got %s, want %s", label, got, want[label])
				}
			}
		})
	}
}

func TestState_CleanOnlyAfterAShutDown(t *testing.T) {
	t.Parallel()
	for _, s := range append(states[:], "") {
		if got, want := s.Clean(), strings.HasPrefix(string(s), "shut down"); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
	b := fixtures(t)["15"]
	b[offState] = byte(len(states))
	if c := parse(t, seal(b, binary.LittleEndian)); c.State != "" || c.State.Clean() {
		t.Errorf("a state not known: got %q", c.State)
	}
}

func TestControlFile_Position(t *testing.T) {
	t.Parallel()
	all := fixtures(t)
	for _, n := range []string{"13", "14", "15", "16", "17", "18"} {
		c := parse(t, all[n])
		if got, want := c.Position(), (wal.Position{Timeline: c.MinRecoveryTimeline, LSN: c.MinRecoveryPoint}); got != want || got.LSN == 0 {
			t.Errorf("%s standby: got %s, want its minimum recovery point %s", n, got, want)
		}
		// The standby replayed exactly one record beyond its restart point: the
		// checkpoint itself. So the server itself says where that record ends.
		if got := c.checkpointEnd(); got != c.MinRecoveryPoint {
			t.Errorf("%s standby: checkpoint ends at %s, want %s", n, got, c.MinRecoveryPoint)
		}
		// Crash recovery begins where the clean stop ended: the next checkpoint
		// record of the primary lies right behind the one before.
		stopped, recovered := parse(t, all[n+"-primary"]), parse(t, all[n+"-recovered"])
		if got, want := stopped.Position(), (wal.Position{Timeline: 2, LSN: recovered.Checkpoint}); got != want {
			t.Errorf("%s primary: got %s, want %s", n, got, want)
		}
	}
	if got := (ControlFile{}).Position(); got != (wal.Position{}) {
		t.Errorf("zero value: got %s, want unknown", got)
	}
}

// The cases come from pg_waldump of a real server: where a checkpoint's record
// begins, and where the log behind it goes on.
func TestControlFile_PositionStepsOverPageHeaders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		from, to wal.LSN
	}{
		{"within a page", 0xE7BAE0, 0xE7BB58},
		{"ends with the segment", 0x17FFF88, 0x1800000},
		{"crosses into a page of the segment", 0x61FFA8, 0x620038},
		{"crosses into a new segment", 0x16FFF90, 0x1700030},
		{"crosses into a new segment after 8 bytes", 0x9FFFF8, 0xA00098},
	} {
		got := ControlFile{Checkpoint: c.from, WALBlockSize: 8192, WALSegmentSize: 1 << 20}.Position().LSN
		if got != c.to {
			t.Errorf("%s: got %s, want %s", c.name, got, c.to)
		}
	}
}

// seal stores the checksum that belongs to b.
func seal(b []byte, order binary.ByteOrder) []byte {
	end := crcOffset(order.Uint32(b[offVersion:]))
	order.PutUint32(b[end:], crc32.Checksum(b[:end], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestParse_ReadsTheOtherByteOrder(t *testing.T) {
	t.Parallel()
	b := fixtures(t)["18"]
	want := parse(t, b)
	swapped := bytes.Clone(b)
	swap := func(off, n int) {
		for i := range n {
			swapped[off+i] = b[off+n-1-i]
		}
	}
	for _, off := range []int{offSystemIdentifier, offCheckpoint, offRedo, offMinRecoveryPoint} {
		swap(off, 8)
	}
	for _, off := range []int{
		offVersion, offCatalogVersion, offState, offTimeline, offPrevTimeline, offMinRecoveryTLI, offMaxConnections, offMaxWorkers,
		offMaxWALSenders, offMaxPreparedXacts, offMaxLocksPerXact, offBlockSize, offWALBlockSize, offWALSegmentSize, offDataChecksums,
	} {
		swap(off, 4)
	}
	if got := parse(t, seal(swapped, binary.BigEndian)); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParse_Refuses(t *testing.T) {
	t.Parallel()
	good := fixtures(t)["18"]
	changed := func(off int, v byte) []byte {
		b := bytes.Clone(good)
		b[off] = v
		return b
	}
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"an empty file", nil, ErrShort},
		{"a file cut before the version", good[:15], ErrShort},
		{"a file cut in the checksum", good[:295], ErrShort},
		{"zeros", make([]byte, 8192), ErrVersion},
		{"the version of PostgreSQL 12", changed(offVersion, byte(1201&0xff)), ErrVersion},
		{"one bit of the system identifier flipped", changed(0, good[0]^1), ErrChecksum},
		{"one bit of the checksum flipped", changed(292, good[292]^1), ErrChecksum},
		{"one bit of the last covered byte flipped", changed(291, good[291]^1), ErrChecksum},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.in)
			if !errors.Is(err, c.want) || got != (ControlFile{}) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if _, err := Parse(good[:296]); err != nil {
		t.Errorf("the bytes that the checksum covers and no padding: %v", err)
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want not found", err)
	}
	path := filepath.Join(dir, "global", "pg_control")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	b := fixtures(t)["17"]
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(dir); err != nil || got != parse(t, b) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.WriteFile(path, b[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); !errors.Is(err, ErrShort) || !strings.Contains(err.Error(), path) {
		t.Errorf("cut file: got %v, want %v that names %s", err, ErrShort, path)
	}
}

func TestReadVersion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := ReadVersion(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want not found", err)
	}
	for in, want := range map[string]int{"15\n": 15, "18": 18, "9.6\n": 9, "": 0, "devel\n": 0, "-1\n": 0, "0\n": 0} {
		if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadVersion(dir); got != want || (err == nil) != (want > 0) {
			t.Errorf("%s: got %d, %v, want %d", strconv.Quote(in), got, err, want)
		}
	}
}

// Parse and Position never panic, whatever the file holds: the checksum is
// made right so that the content gets through.
func FuzzParse(f *testing.F) {
	for _, b := range fixtures(f) {
		f.Add(b[:296])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Parse(b)
		if len(b) < 296 {
			return
		}
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			if crcOffset(order.Uint32(b[offVersion:])) > 0 {
				c, err := Parse(seal(bytes.Clone(b), order))
				if err != nil {
					t.Errorf("got %v with the right checksum", err)
				}
				_ = c.Position()
			}
		}
	})
}
