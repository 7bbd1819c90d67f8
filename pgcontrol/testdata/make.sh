#!/bin/bash
# make.sh NAME BINDIR [CONTROLDATA]: makes NAME.pg_control, NAME-primary, NAME-crashed and NAME-recovered,
# each with the text of pg_controldata beside it, in the current directory, from real servers of BINDIR.
# Not as root. Where BINDIR has no pg_controldata, give one whose major has the same control file version.
set -euo pipefail
N=$1 B=$2 CD=${3:-$2/pg_controldata} OUT=$PWD W=$(mktemp -d) PORT=28731
export LC_ALL=C TZ=UTC
cd "$W"
trap 'for d in p s; do "$B/pg_ctl" -D $d stop -m immediate >>ctl.log 2>&1 || true; done; rm -rf "$W"' EXIT
ctl() { "$B/pg_ctl" -D "$1" -w -t 60 "${@:2}" -l "$1.log" >>ctl.log; }
q() { psql -h "$W" -p "$1" -U postgres -d postgres -XAtqc "$2"; }
keep() { cp "$1/global/pg_control" "$OUT/$2.pg_control"; chmod 644 "$OUT/$2.pg_control"; mkdir -p g/global; cp "$1/global/pg_control" g/global; "$CD" g >"$OUT/$2.txt"; }

K=-k; [ "${N%%-*}" -lt 18 ] || K=   # checksums are the default since 18
"$B/initdb" -D p -A trust -U postgres --no-sync $K --wal-segsize=4 >ctl.log
# every setting differs from its default, so that no two fields can be mistaken for each other
cat >>p/postgresql.conf <<X
port=$PORT
unix_socket_directories='$W'
listen_addresses=''
wal_log_hints=on
max_connections=37
max_worker_processes=9
max_wal_senders=7
max_prepared_transactions=3
max_locks_per_transaction=65
restore_command='false'
X
ctl p start; ctl p stop -m fast
touch p/standby.signal; ctl p start; ctl p promote; q $PORT 'create table t as select generate_series(1,1000)'; q $PORT checkpoint
ctl p stop -m fast; cp -r p s; touch s/standby.signal
printf "port=%d\nprimary_conninfo='host=%s port=%d user=postgres'\n" $((PORT+1)) "$W" $PORT >>s/postgresql.conf
ctl p start; ctl s start
q $PORT 'insert into t select generate_series(1,50000)'; q $PORT checkpoint; L=$(q $PORT 'select pg_current_wal_lsn()')
for _ in {1..100}; do [ "$(q $((PORT+1)) "select pg_last_wal_replay_lsn()>='$L'")" = t ] && break; sleep .1; done
q $((PORT+1)) checkpoint
ctl s stop -m fast; keep s "$N"
ctl p stop -m immediate; keep p "$N-crashed"
ctl p start; ctl p stop -m fast; keep p "$N-primary"
# the end of an archive recovery is the one checkpoint with a previous timeline of its own
touch p/recovery.signal; ctl p start
for _ in {1..100}; do [ "$(q $PORT 'select pg_is_in_recovery()')" = f ] && break; sleep .1; done
ctl p stop -m immediate; keep p "$N-recovered"
