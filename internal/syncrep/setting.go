package syncrep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrepmgr/repmgr/ballot"
	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// syncMark is the server setting that says which values of
// synchronous_standby_names are ours: the last two that we wrote, so that a crash
// between the two ALTER SYSTEMs leaves no doubt. What is not named there is the
// user's. A clone brings both from its source, and they belong together there, too.
const (
	syncMark      = ballot.SyncMark
	syncMarkJoint = " | "
)

// State is the synchronous_standby_names of a server, and whose it is.
type State struct {
	Value string
	Mark  string
}

func (s State) marked(value string) bool {
	return s.Mark != "" && slices.Contains(strings.Split(s.Mark, syncMarkJoint), value)
}

// ours reports whether we wrote the value. The closed one nobody else writes.
func (s State) ours() bool { return s.marked(s.Value) || strings.Contains(s.Value, closedName) }

// Foreign reports whether the value is a user's own.
func (s State) Foreign() bool { return s.Value != "" && !s.ours() }

// Read reads the setting and its mark. A login that may not read the mark
// takes the value for the user's.
func Read(ctx context.Context, n *registry.Server) (s State, err error) {
	const sql = `SELECT current_setting('synchronous_standby_names'), %s`
	var text string
	for _, settings := range []string{ballot.SettingsSQL, `''`} {
		err = n.Conn.QueryRow(ctx, fmt.Sprintf(sql, settings)).Scan(&s.Value, &text)
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
	s.Mark = set[syncMark]
	return s, nil
}

// WriteMark says that a value is ours, and the one before it, where that is. A
// login that may not write the mark writes the value alone: it then counts as the
// user's, and is left alone when nothing is synchronous any more.
func WriteMark(ctx context.Context, n *registry.Server, s State, value string) error {
	if s.marked(value) {
		return nil
	}
	if s.ours() {
		value = s.Value + syncMarkJoint + value
	}
	for _, sql := range []string{`SET ` + syncMark + ` = ''`, `ALTER SYSTEM SET ` + syncMark + ` = ` + postgres.QuoteLiteral(value)} {
		if _, err := n.Conn.Exec(ctx, sql); err != nil && postgres.SQLState(err) != postgres.CodeInsufficientPrivilege {
			return n.QueryError("set "+syncMark, err)
		}
	}
	return nil
}

// Writer writes synchronous_standby_names on the primary.
type Writer struct {
	// Name is the registered name of a node.
	Name func(id int32) string
	// Replaced is called when value replaces a setting that somebody else made: was, at the place from.
	Replaced func(ctx context.Context, n *registry.Server, was, from, value string)
	// Patience is how long a commit may be watched until it is seen to wait.
	ProofTimeout time.Duration
}

// Set puts synchronous_standby_names on a server, and waits until a session
// and all WAL senders of it act by that. Where the value before made no commit
// wait, sessions may still not wait: see [Prove].
func (w Writer) Set(ctx context.Context, n *registry.Server, s election.SyncSetting) error {
	now, err := Read(ctx, n)
	if err != nil {
		return err
	}
	value := Value(s, w.Name)
	if now.Foreign() && now.Value != value {
		from := "its place is not known"
		_ = n.Conn.QueryRow(ctx, `SELECT coalesce(sourcefile || ' line ' || sourceline, source) FROM pg_catalog.pg_settings WHERE name = 'synchronous_standby_names'`).Scan(&from)
		w.Replaced(ctx, n, now.Value, from, value)
	}
	if err := WriteMark(ctx, n, now, value); err != nil {
		return err
	}
	return Put(ctx, n, value)
}

// Put puts a prepared value in force.
func Put(ctx context.Context, n *registry.Server, value string) error {
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

// ErrUnproven: synchronous_standby_names is set, and commits do not wait.
var ErrUnproven = errors.New("commits do not wait for a standby, although synchronous_standby_names is set")

// Raise puts a setting in force that asks for more than what is there, by way
// of one under which no commit is acknowledged: there a commit is seen to wait
// before anybody believes that commits do. Where none is, the setting is back
// afterwards, with an [ErrUnproven].
func (w Writer) Raise(ctx context.Context, n *registry.Server, back, s election.SyncSetting) error {
	probe, err := NewCommitProbe(ctx, n)
	if err != nil {
		return err
	}
	defer probe.Close()
	err = w.Set(ctx, n, election.BlockingSetting())
	if err == nil {
		err = Prove(ctx, n, probe, w.ProofTimeout)
	}
	if err == nil {
		return w.Set(ctx, n, s)
	}
	if n.Conn.IsClosed() { // the next look finds the closed setting, and goes on from there
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postgres.DefaultConnectTimeout)
	defer cancel()
	return errors.Join(err, w.Set(ctx, n, back))
}

// AnyStandby stands on a standby of a quorum, so that from the first moment after a
// promotion no commit is acknowledged by the new primary alone.
const AnyStandby = "ANY 1 (*)"

// Clear takes away a synchronous_standby_names that is ours, and no other:
// what stands in postgresql.conf counts again.
func Clear(ctx context.Context, n *registry.Server) error {
	s, err := Read(ctx, n)
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
