package settings

import (
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/conninfo"
)

// value makes a key from how a value is read and written. A field is sound when what it is
// written as can be read.
func value[T any, V comparable](name string, def V, at func(*T) *V, parse func(string) (V, string), format func(V) string) Key[T] {
	var zero V
	return Key[T]{
		Name: name,
		Set: func(c *T, text string) string {
			v, problem := parse(text)
			if problem == "" {
				*at(c) = v
			}
			return problem
		},
		Get: func(c *T) string { return format(*at(c)) },
		fill: func(c *T) {
			if *at(c) == zero {
				*at(c) = def
			}
		},
		check: func(c *T) string {
			if *at(c) == def {
				return ""
			}
			_, problem := parse(format(*at(c)))
			return problem
		},
		copy: func(dst, src *T) { *at(dst) = *at(src) },
	}
}

// Checked is a key of text that check has nothing against: it returns what is wrong, or "".
func Checked[T any](name, def string, at func(*T) *string, check func(string) string) Key[T] {
	return value(name, def, at,
		func(s string) (string, string) { return s, check(s) },
		func(s string) string { return s })
}

// NoNUL returns what is wrong with text that holds a NUL byte.
func NoNUL(s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		return "must not hold a NUL byte"
	}
	return ""
}

// BadListen returns what is wrong with an address to listen on.
func BadListen(s string) string {
	_, port, err := net.SplitHostPort(s)
	if n, errPort := strconv.ParseUint(port, 10, 16); s != "" && (err != nil || errPort != nil || n == 0) {
		return "must be an address and a port, such as 127.0.0.1:8008 or [::1]:8008"
	}
	return ""
}

// Text is a key of any text without a NUL byte.
func Text[T any](name, def string, at func(*T) *string) Key[T] {
	return Checked(name, def, at, NoNUL)
}

// Path is a key of a path, which is cleaned.
func Path[T any](name string, at func(*T) *string) Key[T] {
	k := Text(name, "", at)
	set := k.Set
	k.Set = func(c *T, text string) string {
		if text != "" {
			text = filepath.Clean(text)
		}
		return set(c, text)
	}
	return k
}

// secret makes text a key of which only a part may be shown.
func secret[T any](k Key[T], at func(*T) *string, redact func(string) string) Key[T] {
	k.redact = redact
	k.hide = func(c *T) { *at(c) = redact(*at(c)) }
	return k
}

// Conninfo is a key of a connection string of libpq.
func Conninfo[T any](name string, at func(*T) *string) Key[T] {
	return secret(Checked(name, "", at, conninfo.Check), at, conninfo.Redact)
}

// Command is a key of a command line, or of options for one.
func Command[T any](name, def string, at func(*T) *string) Key[T] {
	return secret(Text(name, def, at), at, redactCommand)
}

// URL is a key of a webhook's address.
func URL[T any](name string, at func(*T) *string) Key[T] {
	return secret(Checked(name, "", at, func(s string) string {
		u, err := url.Parse(s)
		if s != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			return "must be an address that begins with http:// or https://"
		}
		return ""
	}), at, redactURL)
}

// Bool is a key that is on or off. It defaults to off.
func Bool[T any](name string, at func(*T) *bool) Key[T] {
	return value(name, false, at, func(s string) (bool, string) {
		switch strings.ToLower(strings.TrimSpace(s)) {
		case "true", "on", "yes", "1":
			return true, ""
		case "false", "off", "no", "0":
			return false, ""
		}
		return false, "must be one of true, false, on, off, yes, no, 1, 0"
	}, strconv.FormatBool)
}

// Enum is a key of one of a few words; upper and lower case are the same.
func Enum[T any, V ~string](name string, def V, at func(*T) *V, allowed ...V) Key[T] {
	return value(name, def, at, func(s string) (V, string) {
		names := make([]string, len(allowed))
		for i, a := range allowed {
			if strings.EqualFold(s, string(a)) {
				return a, ""
			}
			names[i] = string(a)
		}
		return "", "must be one of " + strings.Join(names, ", ")
	}, func(v V) string { return string(v) })
}

// Int is a key of a number of least or more.
func Int[T any, V ~int | ~int32](name string, least int, def V, at func(*T) *V) Key[T] {
	return value(name, def, at, func(s string) (V, string) {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		switch {
		case err == nil && n > math.MaxInt32:
			return 0, fmt.Sprintf("must be at most %d", math.MaxInt32)
		case err != nil || n < int64(least):
			return 0, fmt.Sprintf("must be an integer of %d or more", least)
		}
		return V(n), ""
	}, func(v V) string { return strconv.Itoa(int(v)) })
}

// Day is the longest unit of a time.
const Day = 24 * time.Hour

// timeUnits are PostgreSQL's, the largest first.
var timeUnits = []struct {
	name, plural string
	size         time.Duration
}{
	{"d", "days", Day},
	{"h", "hours", time.Hour},
	{"min", "minutes", time.Minute},
	{"s", "seconds", time.Second},
	{"ms", "milliseconds", time.Millisecond},
	{"us", "microseconds", time.Microsecond},
}

// shortest is the smallest span that a key takes which must not be 0.
const shortest = 10 * time.Millisecond

var timeValue = regexp.MustCompile(`^([+-]?[0-9]+)[ \t]*(us|ms|s|min|h|d)?$`)

// IsTime says whether text is a span of time as PostgreSQL writes it, such as 5min.
func IsTime(text string) bool { return timeValue.MatchString(text) }

// Time is a key of a span of time, in units where the file names none. It must be
// least units or more; where 0 is not allowed, a smaller unit may go down to 10 ms.
func Time[T any](name string, unit time.Duration, least int, def time.Duration, at func(*T) *time.Duration) Key[T] {
	return value(name, def, at,
		func(s string) (time.Duration, string) { return parseTime(s, unit, least) },
		func(d time.Duration) string { return formatTime(d, unit) })
}

func parseTime(s string, unit time.Duration, least int) (time.Duration, string) {
	size, plural := unit, ""
	m := timeValue.FindStringSubmatch(strings.TrimSpace(s))
	for _, u := range timeUnits {
		if u.size == unit {
			plural = u.plural
		}
		if m != nil && u.name == m[2] {
			size = u.size
		}
	}
	var n int64
	var err error
	if m != nil {
		n, err = strconv.ParseInt(m[1], 10, 64)
	}
	if most := int64(math.MaxInt64 / size); m != nil && (err != nil || n > most || n < -most) {
		return 0, "is out of range"
	}
	d := time.Duration(n) * size
	if m != nil && (d >= time.Duration(least)*unit || least > 0 && size < unit && d >= shortest) {
		return d, ""
	}
	return 0, fmt.Sprintf("must be an integer of %d or more, in %s or with a unit (ms, s, min, h, d)", least, plural)
}

func formatTime(d, unit time.Duration) string {
	if d%unit == 0 {
		return strconv.FormatInt(int64(d/unit), 10)
	}
	for _, u := range timeUnits {
		if d%u.size == 0 {
			return strconv.FormatInt(int64(d/u.size), 10) + u.name
		}
	}
	return d.String()
}

// sizeUnits are PostgreSQL's, the largest first.
var sizeUnits = []struct {
	name string
	size int64
}{{"TB", 1 << 40}, {"GB", 1 << 30}, {"MB", 1 << 20}, {"kB", 1 << 10}, {"B", 1}}

var sizeValue = regexp.MustCompile(`^([0-9]+)[ \t]*(B|kB|MB|GB|TB)?$`)

// Size is a key of a number of bytes. It defaults to 0.
func Size[T any](name string, at func(*T) *int64) Key[T] {
	return value(name, 0, at, func(s string) (int64, string) {
		m := sizeValue.FindStringSubmatch(strings.TrimSpace(s))
		if m == nil {
			return 0, "must be an integer of 0 or more, in bytes or with a unit (B, kB, MB, GB, TB)"
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		for _, u := range sizeUnits {
			if u.name != m[2] {
				continue
			}
			if n > math.MaxInt64/u.size {
				return 0, "is out of range"
			}
			n *= u.size
		}
		if err != nil {
			return 0, "is out of range"
		}
		return n, ""
	}, func(n int64) string {
		for _, u := range sizeUnits {
			if n != 0 && n%u.size == 0 && u.size > 1 {
				return strconv.FormatInt(n/u.size, 10) + u.name
			}
		}
		return strconv.FormatInt(n, 10)
	})
}

// Names is a key of a list of names, joined by commas.
func Names[T any, V ~string](name string, at func(*T) *[]V) Key[T] {
	return Key[T]{
		Name: name,
		fill: func(*T) {},
		Set: func(c *T, text string) string {
			*at(c) = nil
			for name := range strings.SplitSeq(text, ",") {
				if name = strings.TrimSpace(name); name != "" {
					*at(c) = append(*at(c), V(name))
				}
			}
			return ""
		},
		Get: func(c *T) string {
			names := make([]string, len(*at(c)))
			for i, e := range *at(c) {
				names[i] = string(e)
			}
			return strings.Join(names, ",")
		},
		check: func(*T) string { return "" },
		copy:  func(dst, src *T) { *at(dst) = slices.Clone(*at(src)) },
	}
}

// Networks is a key of a list of addresses and networks, joined by commas. An address is a network of one. Names are
// refused: they would have to be looked up for each request, and whoever answers for them would say who is allowed.
func Networks[T any](name string, at func(*T) *[]netip.Prefix) Key[T] {
	return Key[T]{
		Name: name,
		fill: func(*T) {},
		Set: func(c *T, text string) string {
			var all []netip.Prefix
			for _, item := range List(text) {
				p, err := netip.ParsePrefix(item)
				if addr, errAddr := netip.ParseAddr(item); errAddr == nil && addr.Zone() == "" {
					p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
				}
				if err != nil {
					return fmt.Sprintf("must be addresses and networks joined by commas, such as 192.168.1.7,10.0.0.0/24,fd00::/8, and %q is neither: of a host give the address, because names are not looked up, and of a network how many bits count", item)
				}
				all = append(all, p)
			}
			if text != "" && len(all) == 0 {
				return "must have an address or a network, such as 192.168.1.7 or 10.0.0.0/24: an empty list would allow all, and is written as nothing"
			}
			*at(c) = all
			return ""
		},
		Get: func(c *T) string {
			var all []string
			for _, p := range *at(c) {
				if p.IsSingleIP() {
					all = append(all, p.Addr().String())
				} else {
					all = append(all, p.String())
				}
			}
			return strings.Join(all, ",")
		},
		check: func(c *T) string {
			if slices.ContainsFunc(*at(c), func(p netip.Prefix) bool { return !p.IsValid() }) {
				return "has a network that is not valid"
			}
			return ""
		},
		copy: func(dst, src *T) { *at(dst) = slices.Clone(*at(src)) },
	}
}

// Mapping is a key of a map of paths, made of a repeated old=new. As for pg_basebackup, \=
// stands for a = that belongs to a path.
func Mapping[T any](name string, at func(*T) *map[string]string) Key[T] {
	const bad = "must be old=new, two absolute paths"
	check := func(from, to string) string {
		if !filepath.IsAbs(from) || !filepath.IsAbs(to) {
			return bad
		}
		return ""
	}
	escape := strings.NewReplacer("=", `\=`)
	list := func(c *T) (all []string) {
		for from, to := range *at(c) {
			all = append(all, escape.Replace(from)+"="+escape.Replace(to))
		}
		slices.Sort(all)
		return all
	}
	return Key[T]{
		Name: name,
		fill: func(*T) {},
		Set: func(c *T, text string) string {
			if text == "" {
				return ""
			}
			parts := strings.Split(strings.ReplaceAll(text, `\=`, "\x00"), "=")
			if len(parts) != 2 {
				return bad
			}
			from, to := strings.ReplaceAll(parts[0], "\x00", "="), strings.ReplaceAll(parts[1], "\x00", "=")
			if problem := check(from, to); problem != "" {
				return problem
			}
			*at(c) = maps.Clone(*at(c))
			if *at(c) == nil {
				*at(c) = map[string]string{}
			}
			(*at(c))[filepath.Clean(from)] = filepath.Clean(to)
			return ""
		},
		Get: func(c *T) string { return strings.Join(list(c), ", ") },
		check: func(c *T) string {
			for from, to := range *at(c) {
				if problem := check(from, to); problem != "" {
					return problem
				}
			}
			return ""
		},
		copy: func(dst, src *T) { *at(dst) = maps.Clone(*at(src)) },
		list: list,
	}
}
