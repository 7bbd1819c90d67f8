package trouble_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/trouble"
)

// A trouble is logged when it begins, changes and ends, and not in between.
func TestLog_Report(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := trouble.Log{Logger: slog.New(slog.NewTextHandler(&out, nil)), Hint: func(error) string { return "wait" }}
	for _, err := range []error{nil, errors.New("a"), errors.New("a"), errors.New("b"), nil, nil} {
		l.Report("the clock", err)
	}
	require.Equal(t, 2, strings.Count(out.String(), "the clock does not work"))
	require.Equal(t, 1, strings.Count(out.String(), "the clock works again"))
	require.Empty(t, l.Last())

	l.Report("z", errors.New("last"))
	l.Report("a", errors.New("first"))
	require.Equal(t, []string{"a", "z"}, l.All())
	require.Equal(t, "last", l.Last())
	l.Moot("z")
	l.Moot("z")
	require.False(t, l.Has("z"))
	require.NotContains(t, out.String(), "z works again")
	require.Equal(t, 1, strings.Count(out.String(), "the trouble with z is over"))
}

// The same is news once, and again after something else was said.
func TestLog_News(t *testing.T) {
	t.Parallel()
	var l trouble.Log
	var news []bool
	for _, text := range []string{"", "a", "a", "b", "", "", "b"} {
		news = append(news, l.News("x", text))
	}
	require.Equal(t, []bool{false, true, false, true, true, false, true}, news)
}
