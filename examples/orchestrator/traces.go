package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/pgrepmgr/repmgr"
)

// traces sends each failover and each switchover as a trace to a collector that speaks OpenTelemetry's protocol
// over HTTP (Jaeger, Tempo, the collector itself). The whole is one span, and each of its steps is one below it.
// A service that has the SDK of OpenTelemetry makes the same spans with trace.WithTimestamp, from the same fields.
type traces struct {
	collector string // such as http://127.0.0.1:4318
}

// Notify sends the trace of an event that has one. Whatever it returns, the Monitor logs it and goes on.
func (t traces) Notify(ctx context.Context, e repmgr.Event) error {
	if e.Failover == nil {
		return nil
	}
	name := "failover"
	if e.Type == repmgr.EventSwitchover {
		name = "switchover"
	}
	body, err := json.Marshal(map[string]any{"resourceSpans": []any{map[string]any{
		"resource":   map[string]any{"attributes": attributes("service.name", "orchestrator", "host.name", e.Node)},
		"scopeSpans": []any{map[string]any{"scope": map[string]any{"name": "github.com/pgrepmgr/repmgr"}, "spans": spansOf(name, *e.Failover)}},
	}}})
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.collector+"/v1/traces", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return fmt.Errorf("%s answers %s: %s", r.URL, res.Status, said)
	}
	return nil
}

// span is a span as the protocol writes it: ids in hexadecimal digits, times in nanoseconds as texts.
type span struct {
	Trace      string `json:"traceId"`
	ID         string `json:"spanId"`
	Parent     string `json:"parentSpanId,omitempty"`
	Name       string `json:"name"`
	Kind       int    `json:"kind"` // 1: internal
	Start      string `json:"startTimeUnixNano"`
	End        string `json:"endTimeUnixNano"`
	Attributes []any  `json:"attributes"`
}

// spansOf makes the spans of a failover. A step lasts from the end of the one before. The ids follow from what they name, so that
// a trace which is sent twice is the same trace.
func spansOf(name string, f repmgr.FailoverRecord) []span {
	id := func(part int) string {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d", f.Term, f.StartedAt.UnixNano(), part))
		return hex.EncodeToString(sum[:16])
	}
	at := func(after time.Duration) string { return fmt.Sprint(f.StartedAt.Add(after).UnixNano()) }
	root := span{Trace: id(0), ID: id(1)[:16], Name: name, Kind: 1, Start: at(0), Attributes: attributes(
		"db.system.name", "postgresql", "repmgr.former_primary", f.Former, "repmgr.primary", f.Primary,
		"repmgr.term", f.Term, "repmgr.reason", string(f.Reason), "repmgr.outage_ms", f.Outage.Milliseconds())}
	if f.LostBytes != nil { // nil: it is not known
		root.Attributes = append(root.Attributes, attributes("repmgr.lost_bytes", *f.LostBytes)...)
	}
	all, end := []span{root}, time.Duration(0)
	steps := slices.SortedStableFunc(slices.Values(f.Steps), func(a, b repmgr.FailoverStep) int { return cmp.Compare(a.After, b.After) })
	for i, s := range steps {
		all = append(all, span{
			Trace: root.Trace, ID: id(2 + i)[:16], Parent: root.ID, Name: s.Step, Kind: 1,
			Start: at(end), End: at(max(end, s.After)), Attributes: attributes("repmgr.evidence", s.Evidence),
		})
		end = max(end, s.After)
	}
	all[0].End = at(end)
	return all
}

// attributes are pairs of a name and a value, a text or a number, as the protocol writes them.
func attributes(pairs ...any) (all []any) {
	for pair := range slices.Chunk(pairs, 2) {
		value := map[string]any{"stringValue": pair[1]}
		if n, ok := pair[1].(int64); ok {
			value = map[string]any{"intValue": fmt.Sprint(n)}
		}
		all = append(all, map[string]any{"key": pair[0], "value": value})
	}
	return all
}
