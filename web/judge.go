package web

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/health"
	"github.com/pgrepmgr/repmgr/registry"
)

// judge answers the health check of a path, which has no slashes at its ends. The words of most checks are looked for
// anywhere in the path, in this order, as Patroni does.
func judge(v health.View, path string, q url.Values) health.Verdict {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(path, word) })
	}
	each, some := v.Synchronous()
	switch {
	case path == "liveness":
		return v.Alive()
	case path == "readiness":
		return either(v.Primary(), func() health.Verdict { return readiness(v, q) })
	case has("standby_leader", "standby-leader"):
		return health.No("there are no standby clusters here")
	case path == "", path == "*", has("leader", "master", "primary", "read-write"): // "*" is what OPTIONS * asks for
		return v.Primary()
	case has("replica"):
		return replica(v, q)
	case path == "read-only-sync", path == "read-only-synchronous":
		return either(v.Primary(), func() health.Verdict { return waitedFor(v, q, each) })
	case path == "read-only-quorum":
		return either(v.Primary(), func() health.Verdict { return waitedFor(v, q, some) })
	case has("read-only"):
		return either(v.Primary(), func() health.Verdict { return replica(v, q) })
	case has("health"):
		return v.Running()
	case path == "sync", path == "synchronous":
		return waitedFor(v, q, each)
	case path == "quorum":
		return waitedFor(v, q, some)
	case path == "async", path == "asynchronous":
		if each || some {
			return health.No("commits wait for this node")
		}
		return replica(v, q)
	}
	return health.No("%q is no health check: see /primary, /replica, /health", "/"+path)
}

func either(a health.Verdict, b func() health.Verdict) health.Verdict {
	if a.OK {
		return a
	}
	return b()
}

// waitedFor says whether the node is a standby that commits wait for, which in says.
func waitedFor(v health.View, q url.Values, in bool) health.Verdict {
	if s := replica(v, q); !s.OK {
		return s
	}
	if !in {
		return health.No("commits do not wait for this node in that way")
	}
	return health.Verdict{OK: true}
}

// replica says whether the node is a standby that meets the conditions of a query: lag, replication_state, tag_KEY.
func replica(v health.View, q url.Values) health.Verdict {
	if s := v.Standby(); !s.OK {
		return s
	}
	for _, key := range slices.Sorted(maps.Keys(q)) {
		want := q.Get(key)
		switch tag, isTag := strings.CutPrefix(key, "tag_"); {
		case key == "lag":
			limit, err := parseBytes(want)
			if err != nil {
				return health.No("lag=%q: %v", want, err)
			}
			if w := v.Within(v.Local.ReplayedLSN, limit); !w.OK {
				return w
			}
		case key == "replication_state":
			if have := replicationState(v); have != want {
				return health.No("replication_state is %q, and %q was asked for", have, want)
			}
		case isTag:
			if have, ok := tags(v.Record())[tag]; !ok || !strings.EqualFold(fmt.Sprint(have), want) {
				return health.No("the tag %q is not %q", tag, want)
			}
		}
	}
	return health.Verdict{OK: true}
}

// usualLag is how far a standby may be behind that is ready, in bytes, where the request does not say it.
const usualLag = 1 << 20

func readiness(v health.View, q url.Values) health.Verdict {
	limit, at := int64(usualLag), v.Local.ReplayedLSN
	if q.Get("mode") == "write" {
		at = v.Local.ReceivedLSN
	}
	if given := q.Get("lag"); given != "" {
		var err error
		if limit, err = parseBytes(given); err != nil {
			return health.No("lag=%q: %v", given, err)
		}
	}
	return v.CaughtUp(at, limit)
}

// tags are what the registration says of a node, as tag_KEY compares it.
func tags(r registry.Record) map[string]any {
	t := map[string]any{"location": r.Location, "priority": r.Priority}
	if r.Priority == 0 {
		t["nofailover"] = true
	}
	return t
}

// replicationState is where a standby gets its WAL from; empty: from nowhere.
func replicationState(v health.View) string {
	switch {
	case v.Runs() != election.Standby:
		return ""
	case v.Streams():
		return "streaming"
	case registry.HasArchive(v.Local):
		return "in archive recovery"
	}
	return ""
}

// parseBytes reads 1048576, 16kB, 10MB, 1GB, 1TB.
func parseBytes(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKMGTBb")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, ok := map[string]int{"": 0, "b": 0, "kb": 10, "mb": 20, "gb": 30, "tb": 40}[strings.ToLower(s[len(digits):])]
	if err != nil || n < 0 || !ok || n > 1<<(62-shift) {
		return 0, errors.New("want a number of bytes, such as 1048576, 16kB, 10MB or 1GB")
	}
	return n << shift, nil
}
