package repmgr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/pgrepmgr/repmgr/internal/shell"
	"github.com/pgrepmgr/repmgr/registry"
)

// EventType names what happened. The values are those of repmgr 5, byte for
// byte, because scripts dispatch on them.
type EventType = registry.EventType

const (
	EventClusterCreated              = registry.EventClusterCreated
	EventPrimaryRegister             = registry.EventPrimaryRegister
	EventPrimaryUnregister           = registry.EventPrimaryUnregister
	EventStandbyClone                = registry.EventStandbyClone
	EventStandbyRegister             = registry.EventStandbyRegister
	EventStandbySynced               = registry.EventStandbySynced
	EventStandbyUnregister           = registry.EventStandbyUnregister
	EventStandbyPromote              = registry.EventStandbyPromote
	EventStandbyFollow               = registry.EventStandbyFollow
	EventSwitchover                  = registry.EventSwitchover
	EventChildNodesDisconnectCommand = registry.EventChildNodesDisconnectCommand
	EventNodeRestart                 = registry.EventNodeRestart
	EventClusterRestart              = registry.EventClusterRestart
	EventClusterCleanup              = registry.EventClusterCleanup
	EventDaemonStart                 = registry.EventDaemonStart
	EventDaemonShutdown              = registry.EventDaemonShutdown
	EventDaemonReload                = registry.EventDaemonReload
	EventDaemonYield                 = registry.EventDaemonYield // another daemon watches the same node: this one changes nothing, or (successful) acts again
	EventLocalDisconnect             = registry.EventLocalDisconnect
	EventLocalReconnect              = registry.EventLocalReconnect
	EventUpstreamDisconnect          = registry.EventUpstreamDisconnect
	EventUpstreamReconnect           = registry.EventUpstreamReconnect
	EventStandbyReconnect            = registry.EventStandbyReconnect
	EventStandbyFailure              = registry.EventStandbyFailure
	EventStandbyRecovery             = registry.EventStandbyRecovery
	EventChildDisconnect             = registry.EventChildDisconnect
	EventChildReconnect              = registry.EventChildReconnect
	EventChildConnect                = registry.EventChildConnect
	EventWitnessRegister             = registry.EventWitnessRegister
	EventWitnessUnregister           = registry.EventWitnessUnregister
	EventNodeRejoin                  = registry.EventNodeRejoin
	EventFailoverPromote             = registry.EventFailoverPromote
	EventFailoverFollow              = registry.EventFailoverFollow
	EventFailoverAbort               = registry.EventFailoverAbort

	// These repmgr 5 does not have.
	EventFailoverRefused = registry.EventFailoverRefused // the primary is lost, and failover would be unsafe or is unwanted
	EventFence           = registry.EventFence           // this node's server was stopped, because another one may be the primary
	EventFenceAbility    = registry.EventFenceAbility    // this daemon has found that it can not stop its server, or that it can again
	EventStreamAbility   = registry.EventStreamAbility   // this node could not stream from a node that may be promoted, or it could again
	EventPledgeAbility   = registry.EventPledgeAbility   // this node could not pledge itself in an election, or it could again
	EventVoteLost        = registry.EventVoteLost        // this node's vote was gone from its server, or taken back there, and was it put back
	EventSettingsLost    = registry.EventSettingsLost    // settings that this node needs are gone from its postgresql.auto.conf
	EventWALGone         = registry.EventWALGone         // this standby needs WAL that its upstream does not have any more
	EventTermReaffirmed  = registry.EventTermReaffirmed  // an election came to nothing; the primary goes on in a higher term
	EventSyncUnproven    = registry.EventSyncUnproven    // synchronous_standby_names is set, and commits do not wait: no standby counts as having them
	EventSyncReplaced    = registry.EventSyncReplaced    // a synchronous_standby_names that somebody else wrote was replaced
	EventEventsDropped   = registry.EventEventsDropped   // older events of this node were not kept: there was no primary for too long
	EventDuplicateNode   = registry.EventDuplicateNode   // another server streams under the name of a registered node
)

// EventTimeFormat is how the time of an event that is in no table is given to
// commands: as repmgr does. One that is in repmgr.events has the form that
// PostgreSQL gives it.
const EventTimeFormat = registry.EventTimeFormat

// Event is something that happened to a node. It is written to repmgr.events
// where a primary can take it, and given to every [Notifier] in any case.
type Event = registry.Event

// Notifier is told of each event, in order, one at a time. Notify must return
// when ctx ends; its error is logged and changes nothing.
type Notifier interface {
	Notify(ctx context.Context, e Event) error
}

// NotifierFunc makes a function a [Notifier].
type NotifierFunc func(ctx context.Context, e Event) error

func (f NotifierFunc) Notify(ctx context.Context, e Event) error { return f(ctx, e) }

// CommandNotifier runs a shell command for each event. Its placeholders are
// repmgr's: %n node id, %e event, %s 1 or 0, %t time, %d details, %p, %a and %c
// id, name and conninfo of the other node, %% a percent sign. They may stand in
// or outside quotes, and whatever an event holds, it is never executed. The same
// values are in the command's environment as REPMGR_NODE_ID, REPMGR_EVENT, ...
type CommandNotifier struct {
	Command string
	Types   []EventType // only these; empty: all
}

// Notify runs the command and waits for it, no longer than ctx.
func (n CommandNotifier) Notify(ctx context.Context, e Event) error {
	if len(n.Types) > 0 && !slices.Contains(n.Types, e.Type) {
		return nil
	}
	success, peer := "0", ""
	if e.Success {
		success = "1"
	}
	if e.PeerID != 0 {
		peer = e.PeerID.String()
	}
	out, err := shell.Run(ctx, n.Command, map[byte]shell.Value{
		'n': {Env: "REPMGR_NODE_ID", Text: strconv.Itoa(int(e.NodeID))},
		'e': {Env: "REPMGR_EVENT", Text: string(e.Type)},
		's': {Env: "REPMGR_SUCCESS", Text: success},
		't': {Env: "REPMGR_TIMESTAMP", Text: registry.EventTime(e)},
		'd': {Env: "REPMGR_DETAILS", Text: e.Details},
		'p': {Env: "REPMGR_PEER_ID", Text: peer},
		'a': {Env: "REPMGR_PEER_NAME", Text: e.Peer},
		'c': {Env: "REPMGR_PEER_CONNINFO", Text: Redact(e.PeerConninfo)},
	})
	if err != nil {
		return fmt.Errorf("event_notification_command: %w%s", err, shell.AfterColon(shell.LastLines(out, 3)))
	}
	return nil
}

// WebhookNotifier posts each event as JSON.
type WebhookNotifier struct {
	URL    string
	Types  []EventType  // only these; empty: all
	Client *http.Client // defaults to http.DefaultClient
}

// Notify posts the event; an answer other than 2xx is an error.
func (n WebhookNotifier) Notify(ctx context.Context, e Event) error {
	if len(n.Types) > 0 && !slices.Contains(n.Types, e.Type) {
		return nil
	}
	e.PeerConninfo = Redact(e.PeerConninfo)
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("event webhook: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("event webhook: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := n.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		var ue *url.Error // its text has the URL, which may contain a token
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("event webhook: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16))
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("event webhook: answer %s", res.Status)
	}
	return nil
}

// LogNotifier writes each event to a log.
type LogNotifier struct{ Logger *slog.Logger }

// Notify never fails.
func (n LogNotifier) Notify(ctx context.Context, e Event) error {
	level := LevelNotice
	if !e.Success {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("event", string(e.Type)), slog.Int("node_id", int(e.NodeID))}
	if e.Details != "" {
		attrs = append(attrs, slog.String("details", e.Details))
	}
	n.Logger.LogAttrs(ctx, level, "event", attrs...)
	return nil
}
