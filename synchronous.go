package repmgr

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/internal/voters"
	"github.com/pgrepmgr/repmgr/internal/wait"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// syncNames is a synchronous_standby_names, as PostgreSQL reads it.
type syncNames struct {
	any   bool // ANY: a quorum. Else the first ones of the list count.
	count int
	names []string
}

var syncToken = regexp.MustCompile(`^[ \t\n\r\f\v]*("(?:[^"]|"")*"|[A-Za-z_\x{80}-\x{10FFFF}][\w$\x{80}-\x{10FFFF}]*|\d+|[(),*])`)

// parseSyncNames reads a value that is not empty. Not ok: PostgreSQL would not take it.
func parseSyncNames(text string) (s syncNames, ok bool) {
	var words []string
	for rest := strings.TrimRight(text, " \t\n\r\f\v"); rest != ""; {
		m := syncToken.FindStringSubmatch(rest)
		if m == nil {
			return s, false
		}
		words, rest = append(words, m[1]), rest[len(m[0]):]
	}
	s.count = 1
	if len(words) > 3 && words[len(words)-1] == ")" {
		method := strings.ToUpper(words[0])
		if method == "ANY" || method == "FIRST" {
			s.any, words = method == "ANY", words[1:]
		}
		var err error
		if s.count, err = strconv.Atoi(words[0]); err != nil || words[1] != "(" {
			return s, false
		}
		words = words[2 : len(words)-1]
	}
	for i, w := range words {
		if (w == ",") != (i%2 == 1) || w == "(" || w == ")" {
			return s, false
		}
		if i%2 == 0 {
			if strings.HasPrefix(w, `"`) {
				w = strings.ReplaceAll(w[1:len(w)-1], `""`, `"`)
			}
			s.names = append(s.names, w)
		}
	}
	return s, len(words)%2 == 1
}

// closedName stands for node 0, of which no commit is ever acknowledged.
const closedName = "repmgr:term-not-open"

// unknownNodeID stands for a name in the setting that is no registered node's.
const unknownNodeID int32 = -2

// settingOf is what a value of synchronous_standby_names means to the kernel. One
// that it would not write, such as *, FIRST or a plain list, has Acks -1: whom
// commits wait for is not known. PostgreSQL compares the names without regard to case.
func settingOf(value string, recs []Record) election.SyncSetting {
	if value == "" {
		return election.SyncSetting{}
	}
	s, ok := parseSyncNames(value)
	if !ok || !s.any {
		return election.SyncSetting{Acks: -1}
	}
	set := election.SyncSetting{Acks: s.count}
	for _, name := range s.names {
		id := unknownNodeID
		if name == "*" {
			return election.SyncSetting{Acks: -1}
		}
		for _, r := range recs {
			if strings.EqualFold(r.Name, name) {
				id = int32(r.ID)
				break
			}
		}
		if name == closedName {
			id = 0
		}
		set.Standbys = append(set.Standbys, id)
	}
	slices.Sort(set.Standbys)
	return set
}

// syncValue is the value of synchronous_standby_names that a setting asks for. A
// name that PostgreSQL reads as another's is not written: nobody's word counts for it.
func syncValue(s election.SyncSetting, name func(id int32) string) string {
	if s.Acks <= 0 {
		return ""
	}
	var names []string
	for _, id := range s.Standbys {
		text := name(id)
		if id == 0 || !registry.ValidName.MatchString(text) {
			text = closedName
		}
		names = append(names, pgx.Identifier{text}.Sanitize())
	}
	return fmt.Sprintf("ANY %d (%s)", s.Acks, strings.Join(names, ", "))
}

// syncMark is the server setting that says which values of
// synchronous_standby_names are ours: the last two that we wrote, so that a crash
// between the two ALTER SYSTEMs leaves no doubt. What is not named there is the
// user's. A clone brings both from its source, and they belong together there, too.
const (
	syncMark      = ballot.SyncMark
	syncMarkJoint = " | "
)

// syncState is the synchronous_standby_names of a server, and whose it is.
type syncState struct {
	value string
	mark  string
}

func (s syncState) marked(value string) bool {
	return s.mark != "" && slices.Contains(strings.Split(s.mark, syncMarkJoint), value)
}

// ours reports whether we wrote the value. The closed one nobody else writes.
func (s syncState) ours() bool { return s.marked(s.value) || strings.Contains(s.value, closedName) }

// foreign reports whether the value is a user's own.
func (s syncState) foreign() bool { return s.value != "" && !s.ours() }

// readSyncState reads the setting and its mark. A login that may not read the mark
// takes the value for the user's.
func readSyncState(ctx context.Context, n *registry.Server) (s syncState, err error) {
	const sql = `SELECT current_setting('synchronous_standby_names'), %s`
	var text string
	for _, settings := range []string{ballot.SettingsSQL, `''`} {
		err = n.Conn.QueryRow(ctx, fmt.Sprintf(sql, settings)).Scan(&s.value, &text)
		if postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
			break
		}
	}
	set := map[string]string{}
	if err == nil {
		set, err = ballot.Settings(text)
	}
	if err != nil {
		return s, n.QueryError("read synchronous_standby_names", err)
	}
	s.mark = set[syncMark]
	return s, nil
}

// writeMark says that a value is ours, and the one before it, where that is. A
// login that may not write the mark writes the value alone: it then counts as the
// user's, and is left alone when nothing is synchronous any more.
func writeMark(ctx context.Context, n *registry.Server, s syncState, value string) error {
	if s.marked(value) {
		return nil
	}
	if s.ours() {
		value = s.value + syncMarkJoint + value
	}
	for _, sql := range []string{`SET ` + syncMark + ` = ''`, `ALTER SYSTEM SET ` + syncMark + ` = ` + postgres.QuoteLiteral(value)} {
		if _, err := n.Conn.Exec(ctx, sql); err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
			return n.QueryError("set "+syncMark, err)
		}
	}
	return nil
}

// setSync puts synchronous_standby_names on a server, and waits until a session
// and all WAL senders of it act by that. Where the value before made no commit
// wait, sessions may still not wait: see proveSync.
func (c *Cluster) setSync(ctx context.Context, n *registry.Server, w *voters.Watch, s election.SyncSetting) error {
	now, err := readSyncState(ctx, n)
	if err != nil {
		return err
	}
	value := syncValue(s, func(id int32) string { return w.Record(id).Name })
	if now.foreign() && now.value != value {
		c.tellReplaced(ctx, n, now, value)
	}
	if err := writeMark(ctx, n, now, value); err != nil {
		return err
	}
	return putSync(ctx, n, value)
}

// putSync puts a prepared value in force.
func putSync(ctx context.Context, n *registry.Server, value string) error {
	if err := n.AlterSystem(ctx, map[string]string{"synchronous_standby_names": value}); err != nil {
		return err
	}
	names := []string{}
	if parsed, ok := parseSyncNames(value); ok {
		names = parsed.names
	}
	return n.Poll(ctx, func() (ok bool, err error) {
		err = n.Conn.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names') = $1 AND NOT EXISTS (
			SELECT FROM pg_stat_replication WHERE sync_priority > 0 AND state <> 'backup' AND NOT lower(application_name) = ANY (SELECT lower(s) FROM unnest($2::text[]) s))`, value, names).Scan(&ok)
		return ok, err
	})
}

// tellReplaced says that a value that somebody else wrote is gone.
func (c *Cluster) tellReplaced(ctx context.Context, n *registry.Server, was syncState, value string) {
	from := "its place is not known"
	_ = n.Conn.QueryRow(ctx, `SELECT coalesce(sourcefile || ' line ' || sourceline, source) FROM pg_catalog.pg_settings WHERE name = 'synchronous_standby_names'`).Scan(&from)
	what := fmt.Sprintf("synchronous_standby_names of %s was %q (%s), which repmgrd did not write; with synchronous_mode=quorum it is %q now", n.Name, was.value, from, value)
	c.log.Warn("synchronous_standby_names is replaced", "server", n.Name, "was", was.value, "from", from, "value", value,
		"hint", "With synchronous_mode=quorum repmgrd looks after this setting. With synchronous_mode=off it is yours.")
	c.emit(ctx, n, Event{NodeID: c.cfg.NodeID, Node: c.cfg.NodeName, Type: EventSyncReplaced, Success: true, Details: what})
}

// errUnproven: synchronous_standby_names is set, and commits do not wait.
var errUnproven = errors.New("commits do not wait for a standby, although synchronous_standby_names is set")

// raiseSync puts a setting in force that asks for more than what is there, by way
// of one under which no commit is acknowledged: there a commit is seen to wait
// before anybody believes that commits do. Where none is, the setting is back
// afterwards, with an [errUnproven].
func (c *Cluster) raiseSync(ctx context.Context, n *registry.Server, w *voters.Watch, back, s election.SyncSetting) error {
	probe, err := newCommitProbe(ctx, n)
	if err != nil {
		return err
	}
	defer probe.Close()
	err = c.setSync(ctx, n, w, election.Closed())
	if err == nil {
		err = proveSync(ctx, n, probe, c.cfg.SilenceTimeout/2)
	}
	if err == nil {
		return c.setSync(ctx, n, w, s)
	}
	if n.Conn.IsClosed() { // the next look finds the closed setting, and goes on from there
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postgres.DefaultConnectTimeout)
	defer cancel()
	return errors.Join(err, c.setSync(ctx, n, w, back))
}

// proveSync returns when a commit was seen to wait on a server whose setting lets
// none through, with an [errUnproven] where none was in so long a time. Whether
// sessions wait at all is a flag in shared memory that the checkpointer alone
// sets, when it reads its settings; in some phases of a checkpoint it does not for
// long. Until then commits are acknowledged whatever current_setting and
// pg_stat_replication say.
// The commit is made over a connection to the same server, see commitProbe,
// which does not last.
func proveSync(ctx context.Context, n *registry.Server, probe *commitProbe, limit time.Duration) error {
	until := time.Now().Add(limit)
	for {
		switch waits, err := commitWaits(ctx, n, probe, until); {
		case err != nil || waits:
			return err
		case time.Now().After(until):
			return hint(fmt.Errorf("%s: %w", n.Name, errUnproven),
				"Its checkpointer has not read the settings: it is in a long checkpoint, or it hangs. Until it has, no standby counts as having what is acknowledged. It is tried again.")
		}
		if err := wait.Pause(ctx, 10*postgres.PollInterval); err != nil {
			return err
		}
	}
}

// commitProbe is a connection for a commit that is to wait.
type commitProbe struct {
	node *registry.Server
	done chan error // capacity 1: what came of the commit; nil: none is under way
}

// Close waits for the end of a commit that was seen to wait.
func (p *commitProbe) Close() {
	if p == nil {
		return
	}
	if p.done != nil {
		<-p.done //nolint:errcheck // it was ended by us
	}
	p.node.Close()
}

// begin makes a tiny commit, unless one is under way. It locks nothing that others need.
func (p *commitProbe) begin(ctx context.Context) {
	if p.done != nil {
		return
	}
	done := make(chan error, 1)
	p.done = done
	go func() {
		_, err := p.node.Conn.Exec(ctx, `SELECT pg_catalog.pg_logical_emit_message(true, 'repmgr', '')`)
		done <- err
	}()
}

// newCommitProbe opens one.
func newCommitProbe(ctx context.Context, n *registry.Server) (*commitProbe, error) {
	probe, err := registry.Connect(ctx, n.Name, n.Conninfo)
	if err != nil {
		return nil, err
	}
	if _, err := probe.Conn.Exec(ctx, `SELECT set_config('application_name', 'repmgr commit probe', false), set_config('synchronous_commit', 'on', false)`); err != nil {
		probe.Close()
		return nil, probe.QueryError("prepare a commit", err)
	}
	return &commitProbe{node: probe}, nil
}

// commitWaits reports whether the probe's commit was seen to wait for a standby.
// Then it ends the session that waits; [commitProbe.Close] waits for its end.
func commitWaits(ctx context.Context, n *registry.Server, probe *commitProbe, until time.Time) (waits bool, err error) {
	pid := int32(probe.node.Conn.PgConn().PID())
	begun := time.Now()
	probe.begin(ctx)
	for {
		select {
		case err := <-probe.done:
			probe.done = nil
			if err != nil {
				return false, probe.node.QueryError("commit", err)
			}
			return false, nil
		default:
		}
		err = n.Conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')`, pid).Scan(&waits)
		if err != nil {
			err = n.QueryError("look whether a commit waits", err)
		}
		if waits || err != nil || time.Now().After(until) {
			break
		}
		if err = postgres.PauseSince(ctx, begun); err != nil {
			break
		}
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = n.Conn.Exec(limit, `SELECT pg_catalog.pg_terminate_backend($1)`, pid)
	_ = probe.node.Conn.PgConn().Conn().SetDeadline(time.Now().Add(time.Second)) // should that not have reached it
	if err == nil && !waits {
		err = hint(fmt.Errorf("%s: %w: it took longer than expected to tell", n.Name, errUnproven), "Its disk or its processor may be overloaded. It is tried again.")
	}
	return waits, err
}

// anySync stands on a standby of a quorum, so that from the first moment after a
// promotion no commit is acknowledged by the new primary alone.
const anySync = "ANY 1 (*)"

// clearSync takes away a synchronous_standby_names that is ours, and no other:
// what stands in postgresql.conf counts again.
func clearSync(ctx context.Context, n *registry.Server) error {
	s, err := readSyncState(ctx, n)
	if err != nil || !s.ours() {
		return err
	}
	if err := n.MayAlterSystem(ctx, []string{"synchronous_standby_names"}); err != nil {
		return err
	}
	for _, name := range []string{"synchronous_standby_names", syncMark} {
		if _, err := n.Conn.Exec(ctx, `ALTER SYSTEM RESET `+name); err != nil && (name != syncMark || postgres.SQLState(err) != postgres.CodeInsufficientPrivilege) {
			return n.QueryError("reset "+name, err)
		}
	}
	return n.Reload(ctx)
}
