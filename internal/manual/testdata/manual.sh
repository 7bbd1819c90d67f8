#!/bin/bash
# Types the commands of the manual, as printed, on four hosts. Every line that
# begins with "types" holds one of them. Runs as root in namespaces of its own:
# a network where the hosts' addresses are, and mounts that the machine does not see.
set -euo pipefail
work=$1 bin=$2 PGDIR=$(dirname "$3")

ip link set lo up
for n in 1 2 3 4; do ip address add "10.68.1.16$n/32" dev lo; done
{ echo "127.0.0.1 localhost"; for n in 1 2 3 4; do echo "10.68.1.16$n node$n"; done; } >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts
mount -t tmpfs tmpfs /home && mkdir /home/postgres
mount -t tmpfs tmpfs "$work" && mkdir "$work/bin" && cp "$bin"/repmgr "$bin"/repmgrd "$work/bin" && chmod -R 755 "$work"
mkdir -p /var/lib/postgresql /var/run/postgresql
for n in 1 2 3 4; do
	mkdir -p "$work/node$n"/{home,lib,run}
	printf "cluster='test'\nnode=%d\nconninfo='host=node%d user=postgres dbname=postgres'\n" "$n" "$n" >"$work/node$n/home/repmgr.conf"
	chown -R postgres "$work/node$n"
done

# on NODE COMMAND...: as the postgres user of that host, in its home directory.
on() {
	unshare --mount bash -c '
		mount --bind "$0/home" /home/postgres; mount --bind "$0/lib" /var/lib/postgresql; mount --bind "$0/run" /var/run/postgresql
		cd /home/postgres
		exec setpriv --reuid=postgres --regid=postgres --init-groups env -i HOME=/home/postgres USER=postgres TMPDIR=/home/postgres \
			PGDIR="$1" BIN="$2" PATH="$2:$1/bin:/usr/bin:/bin" bash -euo pipefail -c "$3"' "$work/$1" "$PGDIR" "$work/bin" "$2" </dev/null
}
types() { # NODE LINE [WANT]: the output must hold WANT
	echo "[postgres@$1]\$ $2"
	local out
	out=$(on "$1" "$2" 2>&1) || { echo "$out"; echo "FAILED: $2"; for log in "$work"/node*/home/log; do echo "--- $log"; tail -20 "$log"; done; exit 1; }
	echo "$out"
	case "$out" in *"${3-}"*) ;; *) echo "FAILED: no \"$3\" in the output of: $2"; exit 1 ;; esac
}
until_true() { # NODE LINE: asked again until it succeeds, for half a minute
	for _ in $(seq 300); do on "$1" "$2" >/dev/null 2>&1 && return; read -rt 0.1 <> <(:) || true; done
	echo "FAILED: never true on $1: $2"; exit 1
}
settings() { # the manual's "Primary server configuration", in today's words
	cat <<-END
		listen_addresses='$1'
		unix_socket_directories='/var/run/postgresql'
		wal_level = 'replica'
		archive_mode = on
		archive_command = 'cd .'
		max_wal_senders = 10
		wal_keep_size = '1GB'
		hot_standby = on
		checkpoint_completion_target = 0
		fsync = off
		dynamic_shared_memory_type = mmap
	END
}
start() { on "$1" "pg_ctl -D $2 -l log -w -o \"-c listen_addresses=$1\" start >/dev/null"; }

echo "== Confirm software was built correctly"
types node1 'repmgr --version' 'repmgr '
types node1 'repmgrd --version' 'repmgrd '
types node1 'repmgr --help' 'standby clone'
types node1 'repmgrd --help' '--verbose'

echo "== Primary server configuration"
on node1 'initdb -D data -A trust -U postgres --no-sync >/dev/null'
settings node1 >>"$work/node1/home/data/postgresql.conf"
printf 'host     all              all         10.68.1.0/24         trust\nhost     replication      all         10.68.1.0/24         trust\n' >>"$work/node1/home/data/pg_hba.conf"
start node1 data
on node1 'pgbench -i -q postgres' 2>/dev/null || on node1 'psql -qd postgres -c "CREATE TABLE pgbench_accounts AS SELECT generate_series(1, 100000) AS aid"'

echo "== repmgrd, Usage: registering"
types node1 'repmgr -f /home/postgres/repmgr.conf master register' 'registered as primary'

echo "== Commands: standby clone, where the new data directory shall be"
on node4 'mkdir -m 700 new && cp $BIN/repmgr new/'
types node4 'cd new; ./repmgr standby clone 10.68.1.161' 'standby clone complete'
types node4 'pg_ctl -D /home/postgres/new -l log -w -o "-c listen_addresses=node4" start' 'server started'
until_true node1 'psql -Atd postgres -c "SELECT state FROM pg_stat_replication" | grep -q streaming'
on node4 'pg_ctl -D new -m fast stop >/dev/null; rm -r new; cp $BIN/repmgr .'
types node4 './repmgr -D /home/postgres/new/data standby clone 10.68.1.161' 'standby clone complete'
on node4 'rm -r new'

echo "== Examples"
types node2 'repmgr -D /var/lib/postgresql/9.0 standby clone node1' 'standby clone complete'
types node3 'repmgr -D /var/lib/postgresql/9.0 standby clone node1' 'standby clone complete'
start node2 /var/lib/postgresql/9.0
start node3 /var/lib/postgresql/9.0
types node2 'repmgr -f /home/postgres/repmgr.conf standby register' 'registered as standby'
echo "== repmgrd registers a standby that is not, with repmgr.conf of the current directory"
types node3 'repmgrd'
types node2 'repmgrd -f /home/postgres/repmgr.conf --verbose'
until_true node3 'repmgr cluster show --csv | grep -q "^3,0,1"'
echo "== Lag monitoring"
until_true node1 'psql -Atd postgres -c "SELECT count(*) FROM repl_status WHERE replication_lag = 0 AND apply_lag = 0 AND time_lag = 0" | grep -qx 2'
types node1 'psql -d postgres -c "SELECT * FROM repl_status"' 'time_lag'
types node1 'psql -d postgres -c "SELECT * FROM repl_nodes"' 'node3'

echo "== If we lose node1"
on node1 'pg_ctl -D data -m fast stop >/dev/null' # sends all that it has: neither standby is ahead
types node2 'repmgr -f /home/postgres/repmgr.conf standby promote' 'promoted to primary'
types node3 'repmgr standby follow' 'follows node "node2"'
types node4 'repmgr -D /var/lib/postgresql/9.0 standby clone node2' 'standby clone complete'
start node4 /var/lib/postgresql/9.0
types node4 'repmgr standby register' 'registered as standby'
on node2 'psql -qd postgres -c "CREATE TABLE after_all AS SELECT 42 AS answer"'
for n in node3 node4; do
	until_true $n 'psql -Atd postgres -c "SELECT answer FROM after_all" | grep -qx 42'
	types $n 'psql -Atd postgres -c "SELECT count(*) FROM pgbench_accounts"' 100000
done
types node2 'repmgr cluster show || [ $? = 25 ]' '* running'
types node2 'repmgr cluster event' 'standby_promote'

echo "== the same, with PGDIR/bin in the path of one command"
on node2 'pg_ctl -D /var/lib/postgresql/9.0 -m fast stop >/dev/null'
types node3 'PATH=$PGDIR/bin:$PATH $BIN/repmgr standby promote' 'promoted to primary'

types node4 'repmgr standby follow' 'follows node "node3"'

for n in node2 node3; do on $n 'kill $(cat $(repmgrd -s -f /home/postgres/repmgr.conf))'; done
for n in node2 node3; do until_true $n '! test -e $(repmgrd -s -f /home/postgres/repmgr.conf)'; done
echo "== all of it was typed"
