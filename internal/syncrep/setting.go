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

// syncMark is the server setting that names the values of synchronous_standby_names which this
// program wrote: the last two, so that a crash between two ALTER SYSTEMs leaves no doubt. Any
// other value is the user's. A clone copies both settings from its source, and they belong
// together there too.
const (
	syncMark      = ballot.SyncMark
	syncMarkJoint = " | "
)

// State is the synchronous_standby_names of a server, with the mark that tells who wrote it.
type State struct {
	Value string
	Mark  string
}

func (s State) marked(value string) bool {
	return s.Mark != "" && slices.Contains(strings.Split(s.Mark, syncMarkJoint), value)
}

// ours reports whether this program wrote the value. Nobody else writes the closed one.
func (s State) ours() bool { return s.marked(s.Value) || strings.Contains(s.Value, closedName) }

// Foreign reports whether a user wrote the value.
func (s State) Foreign() bool { return s.Value != "" && !s.ours() }

// Read reads the setting and its mark. Where the login may not read the mark, the value counts
// as the user's.
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

// WriteMark marks a value as ours, and also the value before it, where that was ours. Where the
// login may not write the mark, there is none: the value then counts as the user's, and is left
// alone when nothing is synchronous any more.
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
	// Replaced is called when value replaces a setting that somebody else wrote: was, which
	// stood at from.
	Replaced func(ctx context.Context, n *registry.Server, was, from, value string)
	// ProofTimeout is how long to wait until a commit is seen to wait.
	ProofTimeout time.Duration
}

// Set writes synchronous_standby_names on a server, and waits until a session and all its WAL
// senders use it. Where no commit waited under the value before, sessions may still not wait:
// see [Prove].
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

// Put puts a value in force that is already marked as ours.
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

// ErrUnproven means that synchronous_standby_names is set and commits do not wait.
var ErrUnproven = errors.New("commits do not wait for a standby, although synchronous_standby_names is set")

// Raise puts a setting in force that asks for more than the present one. In between it sets one
// under which no commit is acknowledged, and waits until a commit is seen to wait. Where none
// is seen, it restores the setting from before and returns [ErrUnproven].
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
	if n.Conn.IsClosed() { // the next call finds the closed setting and continues from there
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postgres.DefaultConnectTimeout)
	defer cancel()
	return errors.Join(err, w.Set(ctx, n, back))
}

// AnyStandby is the value that a standby of a quorum has, so that from the first moment after a
// promotion no commit is acknowledged by the new primary alone.
const AnyStandby = "ANY 1 (*)"

// Clear removes a synchronous_standby_names that is ours, and no other. The value in
// postgresql.conf is then in force again.
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
