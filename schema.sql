-- repmgr metadata. Plain SQL: no extension, no shared library, no restart.
-- Idempotent: run it as often as you like, with repmgr or with psql -f, on the
-- primary, in the database that the nodes' conninfo names. It may be run over
-- the tables of a C repmgr 5 extension, which it adopts and leaves in place.

SELECT pg_catalog.pg_advisory_xact_lock(7236764);

CREATE SCHEMA IF NOT EXISTS repmgr;

-- One row: which version of this file made the schema, and for which cluster.
CREATE TABLE IF NOT EXISTS repmgr.metadata (
    one_row        boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    schema_version integer NOT NULL,
    cluster_name   text NOT NULL DEFAULT ''
);

CREATE TABLE IF NOT EXISTS repmgr.nodes (
    node_id          integer PRIMARY KEY,
    upstream_node_id integer NULL REFERENCES repmgr.nodes (node_id) DEFERRABLE,
    active           boolean NOT NULL DEFAULT true,
    node_name        text NOT NULL,
    type             text NOT NULL CHECK (type IN ('primary', 'standby', 'witness')),
    location         text NOT NULL DEFAULT 'default',
    priority         integer NOT NULL DEFAULT 100,
    conninfo         text NOT NULL,
    repluser         varchar(63) NOT NULL,
    slot_name        text NULL,
    config_file      text NOT NULL
);

-- A name is an address: pg_stat_replication knows a standby only by it.
CREATE UNIQUE INDEX IF NOT EXISTS nodes_active_node_name ON repmgr.nodes (node_name) WHERE active;

CREATE TABLE IF NOT EXISTS repmgr.events (
    node_id         integer NOT NULL,
    event           text NOT NULL,
    successful      boolean NOT NULL DEFAULT true,
    event_timestamp timestamp with time zone NOT NULL DEFAULT CURRENT_TIMESTAMP,
    details         text NULL
);
CREATE INDEX IF NOT EXISTS events_event_timestamp ON repmgr.events (event_timestamp);

-- Every sample, kept only with monitoring_history=on, pruned by the daemon.
CREATE TABLE IF NOT EXISTS repmgr.monitoring_history (
    primary_node_id           integer NOT NULL,
    standby_node_id           integer NOT NULL,
    last_monitor_time         timestamp with time zone NOT NULL,
    last_apply_time           timestamp with time zone,
    last_wal_primary_location pg_lsn NOT NULL,
    last_wal_standby_location pg_lsn,
    replication_lag           bigint NOT NULL,
    apply_lag                 bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS monitoring_history_time ON repmgr.monitoring_history (last_monitor_time, standby_node_id);

-- The newest sample of each standby: one row a standby, so that the status
-- views cost the same whatever the history holds.
--   in_step_time  when the standby was last known to have applied all that the
--                 primary had; the lag in seconds counts from here
--   stale_after   how old a sample may be before silence itself counts as lag
CREATE TABLE IF NOT EXISTS repmgr.standby_state (
    standby_node_id           integer PRIMARY KEY REFERENCES repmgr.nodes (node_id) ON DELETE CASCADE,
    primary_node_id           integer NOT NULL,
    last_monitor_time         timestamp with time zone NOT NULL,
    last_apply_time           timestamp with time zone,
    in_step_time              timestamp with time zone NOT NULL,
    stale_after               interval NOT NULL,
    last_wal_primary_location pg_lsn NOT NULL,
    last_wal_standby_location pg_lsn,
    replication_lag           bigint NOT NULL,
    apply_lag                 bigint NOT NULL
) WITH (fillfactor = 50);

-- The newest row, by (term, seq), says who the primary is, whose votes count and
-- which standbys hold what is acknowledged. Written by the primary's monitor.
CREATE TABLE IF NOT EXISTS repmgr.rules (
    term            bigint NOT NULL CHECK (term > 0),
    seq             integer NOT NULL,
    primary_node_id integer NOT NULL,
    voters          integer[] NOT NULL,
    quorum          boolean NOT NULL,
    sync_standbys   integer[] NOT NULL,
    acks            integer NOT NULL,
    coordinator     text NOT NULL DEFAULT '',
    opened_at       timestamp with time zone NOT NULL DEFAULT CURRENT_TIMESTAMP,
    line            jsonb NULL, -- the primary's timeline, and the forks that it came through
    first_xid       bigint NULL, -- the lowest transaction id whose end had not reached the primary when it was promoted; NULL: not known
    PRIMARY KEY (term, seq)
);
ALTER TABLE repmgr.rules ADD COLUMN IF NOT EXISTS line jsonb, ADD COLUMN IF NOT EXISTS first_xid bigint;

-- A sign of life, so that a standby's silence means something.
CREATE TABLE IF NOT EXISTS repmgr.heartbeat (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    at      timestamp with time zone NOT NULL
) WITH (fillfactor = 10);

-- What happened in each failover: a row for each term that an election opened.
CREATE TABLE IF NOT EXISTS repmgr.failovers (
    term              bigint PRIMARY KEY,
    former_primary_id integer NULL,
    primary_id        integer NOT NULL,
    coordinator       text NOT NULL,
    reason            text NOT NULL,
    started_at        timestamp with time zone NOT NULL,
    outage            interval NULL, -- from the last sign of life of the former primary until commits were possible
    lost_bytes        bigint NULL,   -- WAL that the former primary is known to have had beyond the new one; NULL: not known
    steps             jsonb NOT NULL
);

-- Where repmgr 5 counts its elections. The table of its extension stays as it is.
DO $$
BEGIN
    IF pg_catalog.to_regclass('repmgr.voting_term') IS NULL THEN
        CREATE VIEW repmgr.voting_term AS SELECT coalesce(max(term), 1)::integer AS term FROM repmgr.rules;
    END IF;
END
$$;

CREATE OR REPLACE VIEW repmgr.show_nodes AS
    SELECT n.node_id, n.node_name, n.active, n.upstream_node_id,
           u.node_name AS upstream_node_name, n.type, n.priority, n.conninfo
      FROM repmgr.nodes n
      LEFT JOIN repmgr.nodes u ON u.node_id = n.upstream_node_id;

-- repmgr 5's view, by its column names and types.
CREATE OR REPLACE VIEW repmgr.replication_status AS
    SELECT s.primary_node_id, s.standby_node_id,
           n.node_name AS standby_name, n.type AS node_type, n.active,
           s.last_monitor_time,
           s.last_wal_primary_location, s.last_wal_standby_location,
           pg_catalog.pg_size_pretty(s.replication_lag) AS replication_lag,
           CASE WHEN pg_catalog.now() - s.last_monitor_time > s.stale_after
                THEN pg_catalog.now() ELSE s.last_monitor_time END - s.in_step_time AS replication_time_lag,
           pg_catalog.pg_size_pretty(s.apply_lag) AS apply_lag,
           pg_catalog.now() - s.last_monitor_time AS communication_time_lag
      FROM repmgr.standby_state s
      JOIN repmgr.nodes n ON n.node_id = s.standby_node_id;

-- The manual's views. A registered standby without a sample shows NULLs.
CREATE OR REPLACE VIEW repmgr.repl_nodes AS
    SELECT n.node_id AS id, m.cluster_name AS cluster, n.conninfo
      FROM repmgr.nodes n CROSS JOIN repmgr.metadata m;

CREATE OR REPLACE VIEW repmgr.repl_monitor AS
    SELECT primary_node_id AS primary_node, standby_node_id AS standby_node,
           last_monitor_time, last_wal_primary_location, last_wal_standby_location,
           replication_lag, apply_lag
      FROM repmgr.monitoring_history;

CREATE OR REPLACE VIEW repmgr.repl_status AS
    SELECT s.primary_node_id AS primary_node, n.node_id AS standby_node, s.last_monitor_time,
           s.last_wal_primary_location, s.last_wal_standby_location,
           s.replication_lag, s.apply_lag,
           pg_catalog.round(pg_catalog.date_part('epoch',
               CASE WHEN pg_catalog.now() - s.last_monitor_time > s.stale_after
                    THEN pg_catalog.now() ELSE s.last_monitor_time END - s.in_step_time)::numeric, 1) AS time_lag
      FROM repmgr.nodes n
      LEFT JOIN repmgr.standby_state s ON s.standby_node_id = n.node_id
     WHERE n.type = 'standby';

GRANT USAGE ON SCHEMA repmgr TO pg_monitor;
GRANT SELECT ON ALL TABLES IN SCHEMA repmgr TO pg_monitor;

-- The manual reads them without a schema: psql -d postgres -c "SELECT * FROM repl_status".
-- Where public is closed to us, or holds such a name already, they stay in repmgr only.
DO $$
DECLARE
    v text;
BEGIN
    FOREACH v IN ARRAY ARRAY['repl_nodes', 'repl_monitor', 'repl_status'] LOOP
        CONTINUE WHEN pg_catalog.to_regclass('public.' || v) IS NOT NULL;
        EXECUTE pg_catalog.format('CREATE VIEW public.%1$I AS SELECT * FROM repmgr.%1$I', v);
        EXECUTE pg_catalog.format('GRANT SELECT ON public.%I TO pg_monitor', v);
    END LOOP;
EXCEPTION WHEN insufficient_privilege OR invalid_schema_name THEN
    RAISE NOTICE 'repl_nodes, repl_monitor and repl_status are in schema repmgr only: %', SQLERRM;
END
$$;

INSERT INTO repmgr.metadata (schema_version) VALUES (2)
    ON CONFLICT (one_row) DO UPDATE SET schema_version = EXCLUDED.schema_version
    WHERE repmgr.metadata.schema_version < EXCLUDED.schema_version;
