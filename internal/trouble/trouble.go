package trouble

import (
	"log/slog"
	"maps"
	"slices"
)

// Log is the troubles of one daemon at this moment. One goroutine owns it. The zero value
// is ready to use.
type Log struct {
	Logger *slog.Logger
	Hint   func(error) string // what to do about an error; empty: nothing is known

	now  map[string]string // what was logged last of each trouble
	told map[string]string // what was last said of each thing in another way
}

// Report logs a failure when it is new, and forgets it when it is over.
func (l *Log) Report(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == l.now[what]:
	case err == nil:
		delete(l.now, what)
		l.Logger.Info(what + " works again")
	default:
		if l.now == nil {
			l.now = map[string]string{}
		}
		l.now[what] = text
		l.Logger.Warn(what+" does not work", "err", text, "hint", l.Hint(err))
	}
}

// Moot forgets a failure of what is not tried any more: nobody knows whether it works.
func (l *Log) Moot(what string) {
	if l.now[what] != "" {
		delete(l.now, what)
		l.Logger.Info("the trouble with " + what + " is over: this node does not need it now")
	}
}

// Has reports whether something does not work.
func (l *Log) Has(what string) bool { return l.now[what] != "" }

// All names what does not work, in the order of the names.
func (l *Log) All() []string { return slices.Sorted(maps.Keys(l.now)) }

// Last is the text of one trouble, as long as the same ones last the same one. Empty: there is none.
func (l *Log) Last() (text string) {
	if all := l.All(); len(all) > 0 {
		text = l.now[all[len(all)-1]]
	}
	return text
}

// News reports whether text says something else of a thing than the last call. Empty: there
// is nothing to say of it.
func (l *Log) News(what, text string) bool {
	if l.told[what] == text {
		return false
	}
	if l.told == nil {
		l.told = map[string]string{}
	}
	l.told[what] = text
	return true
}
