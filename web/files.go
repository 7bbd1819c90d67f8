package web

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	readWithin  = 250 * time.Millisecond // how long a request waits for a file
	firstWithin = 5 * time.Second        // and how long the first reading of it may take
	fileBytes   = 1 << 20                // of a file, at most
)

// file is what a regular file held. Of one that has no name it is empty.
type file struct {
	path    string
	content []byte
	mode    fs.FileMode
}

// stamp tells the states of a file apart, also those of its owner and its permissions.
type stamp struct {
	dev, ino         uint64
	size             int64
	changed, written syscall.Timespec
}

func stampOf(path string) (s stamp) {
	if info, err := os.Stat(path); err == nil {
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			s = stamp{uint64(sys.Dev), sys.Ino, sys.Size, sys.Ctim, sys.Mtim}
		}
	}
	return s
}

// readFile reads a regular file. Anything else, such as a pipe, might never end.
func readFile(path string) (file, error) {
	if path == "" {
		return file{}, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe is opened at once
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	if !info.Mode().IsRegular() {
		return file{}, fmt.Errorf("%s is no regular file", path)
	}
	content, err := io.ReadAll(io.LimitReader(f, fileBytes))
	return file{path, content, info.Mode()}, err
}

// made is what is made of files, again when they have changed. One goroutine at a time looks at them, and none of those who
// ask waits for long: a disk that does not answer holds up that goroutine alone.
type made[T any] struct {
	paths []string
	from  func([]file) (T, error)

	mu      sync.Mutex
	looking chan struct{} // closed at the end of the look that is under way; nil: there is none
	since   time.Time     // when that began
	of      []stamp
	value   T // the newest that could be made
	err     error
	looked  bool
}

// get is what was made last, and why there is nothing newer, although the files have changed.
func (m *made[T]) get() (value T, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.looking == nil {
		m.looking, m.since = make(chan struct{}), time.Now()
		go m.look(m.looking)
	}
	within := readWithin
	if !m.looked {
		within = firstWithin
	}
	looking, left := m.looking, within-time.Since(m.since)
	m.mu.Unlock()
	select {
	case <-looking:
	case <-time.After(left):
	}
	m.mu.Lock()
	if !m.looked {
		return m.value, fmt.Errorf("%s: it can not be read within %s", m.paths[0], within)
	}
	return m.value, m.err
}

func (m *made[T]) look(done chan struct{}) {
	m.mu.Lock()
	before, good := m.of, m.looked && m.err == nil
	m.mu.Unlock()
	var of []stamp
	for _, path := range m.paths {
		of = append(of, stampOf(path))
	}
	var value T
	var err error
	again := !good || !slices.Equal(of, before)
	if again {
		value, err = m.read()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.looking = nil; again {
		m.of, m.err, m.looked = of, err, true
		if err == nil {
			m.value = value
		}
	}
	close(done)
}

func (m *made[T]) read() (value T, err error) {
	var all []file
	for _, path := range m.paths {
		f, err := readFile(path)
		if err != nil {
			return value, err
		}
		all = append(all, f)
	}
	return m.from(all)
}
