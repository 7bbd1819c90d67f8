package repmgr

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// However much there is to say, the statement is shown whole, and tells which nodes
// can not be streamed from.
func TestPresence_StaysShort(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä password='hunter2' ", 100)
	left, can := 1.5, false
	p := Presence{
		PID: 1 << 30, Mode: FailoverAutomatic, Phase: "standby", Reason: long, Since: time.Now(), SeenAt: time.Now(), LeaseLeft: &left, CanFence: &can,
		Unable: long, Error: long, At: time.Now(), NoStream: map[NodeID]string{},
	}
	for id := NodeID(1); id <= 9; id++ {
		p.NoStream[id] = long
	}
	sql := p.statement()
	if len(sql) > presenceBytes || strings.Contains(sql, "hunter2") {
		t.Errorf("%d bytes: %s", len(sql), sql)
	}
	var got Presence
	if err := json.Unmarshal([]byte(strings.TrimPrefix(sql, presenceMark)), &got); err != nil || len(got.NoStream) != 9 {
		t.Errorf("got %+v, %v", got, err)
	}
}
