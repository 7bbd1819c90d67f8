#!/bin/bash
# Types what is typed on a machine with Debian's repmgr-common, with our programs in the place of
# repmgr 5's. Runs as root in namespaces of its own: mounts that the machine does not see, a network
# whose port 5432 is free, and processes of which none outlives this script.
set -euo pipefail
bin=$1 PGDIR=$2 version=$3
conf=/etc/postgresql/$version/main data=/var/lib/postgresql/$version/main log=/var/log/postgresql/repmgrd.log

ip link set lo up
for dir in /run /etc/postgresql /var/lib/postgresql /var/log/postgresql; do mount -t tmpfs tmpfs "$dir"; done
mkdir -p /run/postgresql "$conf" "$data"
chmod 700 "$data"
for name in repmgr repmgrd; do mount --bind "$bin/$name" "/usr/lib/postgresql/$version/bin/$name"; done
cat >/run/default <<END
REPMGRD_ENABLED=yes
REPMGRD_CONF="$conf/repmgr.conf"
REPMGRD_OPTS="--daemonize=false"
REPMGRD_USER=postgres
REPMGRD_BIN=/usr/bin/repmgrd
REPMGRD_PIDFILE=/var/run/repmgrd.pid
END
mount --bind /run/default /etc/default/repmgrd
cat >"$conf/repmgr.conf" <<END
node_id=1
node_name='node1'
conninfo='host=127.0.0.1 user=postgres dbname=postgres connect_timeout=2'
data_directory='$data'
pg_bindir='$PGDIR'
failover=automatic
log_file='$log'
END
cat >"$conf/postgresql.conf" <<END
data_directory = '$data'
hba_file = '$data/pg_hba.conf'
ident_file = '$data/pg_ident.conf'
listen_addresses = '127.0.0.1'
port = 5432
unix_socket_directories = '/var/run/postgresql'
fsync = off
dynamic_shared_memory_type = mmap
END
chown -R postgres:postgres /run/postgresql /etc/postgresql /var/lib/postgresql /var/log/postgresql

fail() {
	echo "FAILED: $*"
	echo "--- $log"; tail -30 "$log"
	echo "--- service status"; postgres 'repmgr service status' || echo "exit code $?"
	echo "--- processes"; ps -eLo pid,ppid,tid,stat,wchan:20,lstart,args
	exit 1
}
clean() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb "$@" </dev/null; } # as at boot
postgres() { clean setpriv --reuid=postgres --regid=postgres --init-groups bash -euo pipefail -c "cd $conf; $1"; }
# root and postgres type a LINE, which ends with CODE, and whose output holds WANT.
types() { # WHO LINE [WANT [CODE]]
	local out code=0
	echo "[$1]# $2"
	if [ "$1" = root ]; then out=$(clean bash -c "$2" 2>&1) || code=$?; else out=$(postgres "$2" 2>&1) || code=$?; fi
	echo "$out"
	[ $code = "${4-0}" ] || fail "exit code $code, want ${4-0}: $2"
	case "$out" in *"${3-}"*) ;; *) fail "no \"$3\" in the output of: $2" ;; esac
}
until_true() { # LINE: asked again until it succeeds, for half a minute
	for _ in $(seq 300); do eval "$1" >/dev/null 2>&1 && return; read -rt 0.1 <> <(:) || true; done
	fail "never true: $1"
}
runs() { # the process that was started, and no other one
	until_true 'cmp /run/repmgrd.pid /run/postgresql/repmgrd-1.pid'
	until_true "postgres 'repmgr service status' | grep -q '| running |'"
}
no_daemon() { # and neither its pid file
	until_true '! pgrep -x repmgrd'
	[ ! -e /run/postgresql/repmgrd-1.pid ] || fail "its pid file is left"
}

postgres "$PGDIR/initdb -D $data -A trust -U postgres --no-sync" >/dev/null
postgres "$PGDIR/pg_ctl -D $conf -l /var/log/postgresql/server.log -w start" >/dev/null || { cat /var/log/postgresql/server.log; exit 1; }

echo "== pg_wrapper"
types postgres 'repmgr --version' 'repmgr for Go'
types postgres 'repmgr primary register' 'registered as primary'
types postgres "repmgr --cluster $version/main cluster show" '| * running |'
types postgres "repmgr --cluster=$version/main cluster show" '| * running |'
types postgres 'repmgr cluster show' '| * running |'

echo "== the init script"
types root '/etc/init.d/repmgrd status' 'repmgrd is not running' 3
types root '/etc/init.d/repmgrd start' 'Starting PostgreSQL replication management and monitoring daemon: repmgrd.'
runs
types root '/etc/init.d/repmgrd status' 'repmgrd is running'
pid=$(cat /run/repmgrd.pid)
types root "ps -o user=,comm= -p $pid" 'postgres repmgrd'
types root '/etc/init.d/repmgrd restart' 'Stopping PostgreSQL replication management and monitoring daemon: repmgrd.'
runs
[ "$pid" != "$(cat /run/repmgrd.pid)" ] || fail "it was not restarted"
types root '/etc/init.d/repmgrd stop' 'Stopping PostgreSQL replication management and monitoring daemon: repmgrd.'
no_daemon
types root '/etc/init.d/repmgrd status' 'repmgrd is not running' 1 # by its pid file, which nobody removes
types root '/etc/init.d/repmgrd stop' 'already stopped'

echo "== after a crash both pid files are left"
types root '/etc/init.d/repmgrd start'
runs
kill -9 "$(cat /run/repmgrd.pid)"
until_true "! kill -0 $(cat /run/repmgrd.pid)"
[ -e /run/postgresql/repmgrd-1.pid ] || fail "there is nothing to try"
types root '/etc/init.d/repmgrd status' 'repmgrd is not running' 1
types root '/etc/init.d/repmgrd start'
runs
types root '/etc/init.d/repmgrd status' 'repmgrd is running'
until_true '[ "$(pgrep -xc repmgrd)" = 2 ]' # the watchdog of the one that was killed sees that it has a successor, and ends

echo "== the server hangs: it ends in time all the same, and by SIGTERM"
: >"$log"
pkill -STOP -x postgres
SECONDS=0
types root '/etc/init.d/repmgrd stop'
[ $SECONDS -lt 30 ] || fail "it took $SECONDS s"
no_daemon
pkill -CONT -x postgres
grep -q 'repmgrd stopped' "$log" || fail "it was killed"
