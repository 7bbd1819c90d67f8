package repmgr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrepmgr/repmgr/election"
	"github.com/pgrepmgr/repmgr/postgres"
	"github.com/pgrepmgr/repmgr/registry"
)

// WitnessOptions are the choices of [Cluster.RegisterWitness] and
// [Cluster.UnregisterWitness].
type WitnessOptions struct {
	PrimaryConninfo string // a registered node that knows the cluster. Defaults to what the local server knows.
	NodeID          NodeID // only to unregister: which witness. Defaults to Name, else to the local node.
	Name            string // used where NodeID is 0
	Force           bool   // register anew over what is there; unregister a witness that does not answer
	DryRun          bool   // check everything, change nothing
}

// RegisterWitness registers the local node as a witness: a PostgreSQL server of
// its own, beside the cluster's, that replicates nothing and has a vote. It gets
// a copy of the metadata, which the Monitors keep in step. Without Force it
// refuses where the node is registered already, or the server holds a copy.
func (c *Cluster) RegisterWitness(ctx context.Context, o WitnessOptions) (Record, error) {
	rec, err := c.record(RoleWitness)
	if err != nil {
		return Record{}, err
	}
	rec.Priority, rec.SlotName = 0, ""
	local, err := c.connectLocal(ctx)
	if err != nil {
		return Record{}, err
	}
	defer local.Close()
	status, err := local.Status(ctx)
	if err != nil {
		return Record{}, err
	}
	primary, of, recs, err := c.witnessPrimary(ctx, local, o)
	if err != nil {
		return Record{}, err
	}
	defer primary.Close()
	rec.UpstreamID, rec.UpstreamName = of.ID, of.Name
	held, err := c.checkWitness(ctx, local, primary, status, recs, rec, o.Force)
	if err != nil {
		return Record{}, err
	}
	if o.DryRun {
		c.log.Info("prerequisites met for registering the witness", "node", rec.Name, "primary", of.Name)
		return rec, nil
	}
	created, err := local.CreateSchema(ctx, Schema)
	if err != nil {
		return Record{}, err
	}
	if created {
		c.log.Log(ctx, LevelNotice, fmt.Sprintf("repmgr metadata schema created in database %q", local.Conn.Config().Database))
	}
	if old, ok := registry.ByID(recs, rec.ID); held && (!ok || old.Role != RoleWitness) {
		// What it holds is of a time, or of a cluster, in which it was not this one's witness.
		if err := forgetWitness(ctx, local); err != nil {
			return Record{}, err
		}
	}
	if err := c.saveRecord(ctx, primary, rec, o.Force); err != nil {
		return Record{}, err
	}
	if err := c.copyMetadata(ctx, primary, local); err != nil {
		return rec, hint(fmt.Errorf("%s is registered, its copy of the metadata is not made: %w", rec, err), "Run it again with --force.")
	}
	c.emit(ctx, primary, Event{
		NodeID: rec.ID, Node: rec.Name, Type: EventWitnessRegister, Success: true,
		Details: fmt.Sprintf("%s registered as witness of %s", rec, of), PeerID: of.ID, Peer: of.Name, PeerConninfo: of.Conninfo,
	})
	return rec, nil
}

// witnessPrimary connects to the primary of the cluster, and reads its rows.
// Who knows the cluster is the server that the options name, else local. Nobody
// is the primary because it is not in recovery: a witness never is.
func (c *Cluster) witnessPrimary(ctx context.Context, local *registry.Server, o WitnessOptions) (primary *registry.Server, of Record, recs []Record, err error) {
	knows := local
	if o.PrimaryConninfo != "" {
		if knows, err = registry.Connect(ctx, "", o.PrimaryConninfo); err != nil {
			return nil, of, nil, err
		}
		defer knows.Close()
	}
	if recs, err = knows.Records(ctx); err != nil {
		return nil, of, nil, err
	}
	if of, err = c.findPrimary(ctx, recs); err != nil {
		return nil, of, nil, err
	}
	if primary, err = c.connectTo(ctx, of); err != nil {
		return nil, of, nil, err
	}
	if recs, err = primary.Records(ctx); err != nil {
		primary.Close()
		return nil, of, nil, err
	}
	return primary, of, recs, nil
}

// checkWitness asks whether the local server can be a witness, and whether the
// row is ours to write. held says that it has a copy of some metadata already.
func (c *Cluster) checkWitness(ctx context.Context, local, primary *registry.Server, status NodeStatus, recs []Record, rec Record, force bool) (held bool, err error) {
	p, err := primary.Status(ctx)
	switch {
	case err != nil:
		return false, err
	case status.InRecovery:
		return false, hint(kind(ErrNotPrimary, "%s is a standby: a witness is a server of its own", local.Name),
			"Make a new server with initdb, on a machine that fails at other times than those of the data.")
	case status.SystemIdentifier == p.SystemIdentifier:
		return false, hint(kind(ErrSystemIdentifier, "%s is of the cluster that it shall witness (system identifier %s)", local.Name, p.SystemIdentifier),
			"Make a new server with initdb, and let conninfo lead to that one.")
	case len(status.Senders) > 0:
		return false, kind(ErrRefused, "%s is the primary of %q: a witness is in no replication", local.Name, status.Senders[0].ApplicationName)
	}
	if old, ok := registry.ByID(recs, rec.ID); ok && old.Role != RoleWitness {
		return false, hint(kind(ErrRegistered, "node ID %d is registered already, as %q (%s)", old.ID, old.Name, old.Role), "Choose another node_id.")
	}
	if err := c.checkRow(ctx, recs, rec, status, force); err != nil {
		return false, err
	}
	own, err := local.Records(ctx)
	if err != nil && !errors.Is(err, ErrNotRegistered) { // no metadata yet: no rows
		return false, err
	}
	for _, r := range own {
		if r.Role != RolePrimary {
			continue
		}
		if q := c.look(ctx, r); q.err == nil && q.status.StartedAt.Equal(status.StartedAt) && q.status.Settings.Port == status.Settings.Port {
			return false, hint(kind(ErrRefused, "%s is a registered primary, of another cluster", local.Name),
				"If that cluster is no more: repmgr primary unregister --force, with its configuration.")
		}
	}
	if len(own) > 0 && !force {
		return false, hint(kind(ErrRegistered, "%s holds the rows of %d nodes already", local.Name, len(own)), "To replace them, use --force.")
	}
	return len(own) > 0, nil
}

// UnregisterWitness removes the row of a witness, and the copy of the metadata
// in its server. It stops nothing. With Force the witness need not answer.
func (c *Cluster) UnregisterWitness(ctx context.Context, o WitnessOptions) (Record, error) {
	local, err := c.connectLocal(ctx)
	if err == nil {
		defer local.Close()
	} else if o.PrimaryConninfo == "" {
		return Record{}, hint(err, "If that server is gone for good, name the primary: repmgr -h HOST witness unregister --force")
	}
	primary, _, recs, err := c.witnessPrimary(ctx, local, o)
	if err != nil {
		return Record{}, err
	}
	defer primary.Close()
	rec, err := c.unregisterTarget(recs, UnregisterOptions{NodeID: o.NodeID, Name: o.Name}, RoleWitness)
	switch {
	case err != nil:
		return Record{}, err
	case rec.Role != RoleWitness:
		return Record{}, kind(ErrRefused, "%s is registered as %s, not as witness", rec, rec.Role)
	}
	witness, err := c.connectTo(ctx, rec)
	if err == nil {
		defer witness.Close()
	} else if !o.Force {
		return Record{}, hint(err, "If that server is gone for good, use --force.")
	}
	if o.DryRun {
		return rec, nil
	}
	if _, err := primary.Conn.Exec(ctx, `DELETE FROM repmgr.nodes WHERE node_id = $1 AND type = 'witness'`, int32(rec.ID)); err != nil {
		return Record{}, primary.QueryError("delete from repmgr.nodes", err)
	}
	if witness != nil {
		if err := forgetWitness(ctx, witness); err != nil {
			c.log.Warn("the former witness still has its copy of the metadata", "node", rec.Name, "err", err)
		}
	}
	c.emit(ctx, primary, Event{NodeID: rec.ID, Node: rec.Name, Type: EventWitnessUnregister, Success: true, Details: fmt.Sprintf("%s unregistered", rec)})
	return rec, nil
}

// forgetWitness removes a witness' copy of the metadata. Its ballot stays: a promise is kept.
func forgetWitness(ctx context.Context, n *registry.Server) error {
	err := pgx.BeginFunc(ctx, n.Conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM repmgr.rules; SET CONSTRAINTS ALL DEFERRED; DELETE FROM repmgr.nodes`)
		return err
	})
	if err != nil {
		return n.QueryError("remove the copy of the metadata", err)
	}
	return nil
}

// metadataSQL is what a witness has a copy of: the nodes, and of the rules those
// of the newest term, two at least. As jsonb, in UTC, equal content is equal text.
const metadataSQL = `SELECT pg_is_in_recovery(), jsonb_build_object(
	'cluster', (SELECT cluster_name FROM repmgr.metadata),
	'nodes', (SELECT coalesce(jsonb_agg(to_jsonb(n) ORDER BY node_id), '[]') FROM repmgr.nodes n),
	'rules', (SELECT coalesce(jsonb_agg(to_jsonb(r) || jsonb_build_object('opened_at', r.opened_at AT TIME ZONE 'UTC') ORDER BY term DESC, seq DESC), '[]')
		FROM (SELECT *, row_number() OVER (ORDER BY term DESC, seq DESC) AS age, max(term) OVER () AS newest FROM repmgr.rules) r
		WHERE age <= 2 OR term = newest))::text`

// metadata is what a server has of it.
type metadata struct {
	text       string
	inRecovery bool
	Rules      []election.Rule `json:"rules"` // newest first
}

func (m metadata) newest() election.Rule {
	if len(m.Rules) == 0 {
		return election.Rule{}
	}
	return m.Rules[0]
}

func readMetadata(ctx context.Context, n *registry.Server) (m metadata, err error) {
	if err := n.NeedSchema(ctx); err != nil {
		return m, err
	}
	if err := n.Conn.QueryRow(ctx, metadataSQL).Scan(&m.inRecovery, &m.text); err != nil {
		return m, n.QueryError("read the metadata", err)
	}
	if err := json.Unmarshal([]byte(m.text), &m); err != nil {
		return m, fmt.Errorf("read the metadata of %s: %w", n.Name, err)
	}
	return m, nil
}

// copyMetadata brings a witness' copy of the metadata in step with the primary's.
// Where nothing changed that is two statements. It may be called by several
// Monitors at once: they take turns, and each reads the primary only when it is
// its turn. It refuses with [ErrRefused] where the witness knows of a newer rule:
// then that is the primary no more.
func (c *Cluster) copyMetadata(ctx context.Context, primary, witness *registry.Server) error {
	from, to, err := bothMetadata(ctx, primary, witness)
	if err != nil || from.text == to.text {
		return err
	}
	err = pgx.BeginFunc(ctx, witness.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE repmgr.nodes, repmgr.rules IN SHARE ROW EXCLUSIVE MODE; SET CONSTRAINTS ALL DEFERRED`); err != nil {
			return witness.QueryError("lock the copy of the metadata", err)
		}
		if from, to, err = bothMetadata(ctx, primary, witness); err != nil || from.text == to.text {
			return err
		}
		for _, sql := range []string{
			`UPDATE repmgr.metadata SET cluster_name = $1::jsonb ->> 'cluster' WHERE cluster_name <> $1::jsonb ->> 'cluster'`,
			`DELETE FROM repmgr.nodes WHERE $1::jsonb IS NOT NULL`,
			`INSERT INTO repmgr.nodes SELECT * FROM jsonb_populate_recordset(NULL::repmgr.nodes, $1::jsonb -> 'nodes')`,
			`DELETE FROM repmgr.rules WHERE $1::jsonb IS NOT NULL`,
			`INSERT INTO repmgr.rules SELECT (r).* FROM (SELECT jsonb_populate_record(NULL::repmgr.rules,
				x || jsonb_build_object('opened_at', (x ->> 'opened_at')::timestamp AT TIME ZONE 'UTC')) AS r FROM jsonb_array_elements($1::jsonb -> 'rules') x) s`,
		} {
			if _, err := tx.Exec(ctx, sql, from.text); err != nil {
				return witness.QueryError("write the copy of the metadata", err)
			}
		}
		return nil
	})
	if err != nil && postgres.SQLState(err) != "" {
		return witness.QueryError("write the copy of the metadata", err)
	}
	return err
}

// bothMetadata reads the two ends of a copy and asks whether it may be made.
func bothMetadata(ctx context.Context, primary, witness *registry.Server) (from, to metadata, err error) {
	if to, err = readMetadata(ctx, witness); err != nil {
		return from, to, err
	}
	if from, err = readMetadata(ctx, primary); err != nil {
		return from, to, err
	}
	switch {
	case from.inRecovery:
		err = kind(ErrNotPrimary, "copy the metadata of %s: it is a standby", primary.Name)
	case to.inRecovery:
		err = kind(ErrNotPrimary, "copy the metadata to %s: it is a standby", witness.Name)
	case to.newest().Compare(from.newest()) > 0:
		err = hint(kind(ErrRefused, "copy the metadata of %s to %s: the witness knows of term %d, the primary only of term %d",
			primary.Name, witness.Name, to.newest().Term, from.newest().Term), "Another node was made primary meanwhile: see repmgr service status.")
	}
	return from, to, err
}
