#!/bin/bash
# systemd.sh DEB MAJOR: a server that is watched by Debian's repmgr 5 is taken over, and given back, by an operator who types what
# docs/packages.md says. It runs in a bare Debian that has been booted: systemd is process 1.
set -euo pipefail
deb=$1 major=$2
export DEBIAN_FRONTEND=noninteractive

fail() {
	echo "FAILED: $*"
	systemctl status --no-pager -l repmgrd.service || true
	journalctl --no-pager -n 40 -u repmgrd.service || true
	tail -n 20 /var/log/postgresql/* || true
	exit 1
}
same() { [ "$1" = "$2" ] || fail "$3: \"$1\", want \"$2\""; }
until_true() { for _ in $(seq 300); do eval "$1" >/dev/null 2>&1 && return; read -rt 0.1 <> <(:) || true; done; fail "never true: $1"; }
as() { runuser -u postgres -- bash -c "cd /; $1"; }
types() { echo "# ${1//\$major/$major}"; eval "$1" || fail "$1"; }
pid() { pgrep -o -x repmgrd || true; } # the daemon, and not its watchdog
program() { readlink "/proc/$(pid)/exe"; }
server() { as 'psql -XAtqc "SELECT 1"' >/dev/null || fail "the server does not run"; }
theirs=/usr/lib/postgresql/$major/bin/repmgrd.repmgr5

echo "== repmgr 5 watches a server"
pg_createcluster $major main -o shared_preload_libraries=repmgr -o fsync=off >/dev/null
types 'systemctl start postgresql@$major-main'
as 'createuser -s repmgr && createdb -O repmgr repmgr'
cat >/etc/repmgr.conf <<END
node_id=1
node_name='node1'
conninfo='host=/var/run/postgresql user=postgres dbname=repmgr connect_timeout=2'
data_directory='/var/lib/postgresql/$major/main'
pg_bindir='/usr/lib/postgresql/$major/bin'
log_file='/var/log/postgresql/repmgrd.log'
failover=automatic
promote_command='/usr/bin/repmgr -f /etc/repmgr.conf standby promote'
follow_command='/usr/bin/repmgr -f /etc/repmgr.conf standby follow'
END
cat >/etc/default/repmgrd <<END
REPMGRD_ENABLED=yes
REPMGRD_CONF="/etc/repmgr.conf"
REPMGRD_OPTS="--daemonize=false"
END
as 'repmgr -f /etc/repmgr.conf primary register'
types 'systemctl restart repmgrd'
until_true '[ "$(program)" = /usr/lib/postgresql/$major/bin/repmgrd ]'
old=$(pid)

echo "== ours is installed"
types "apt-get install -y -q $deb >/tmp/log"
same "$(pid) $(program)" "$old $theirs" "what runs"
same "$(realpath "$(systemctl show -p FragmentPath --value repmgrd)")" /usr/lib/systemd/system/repmgrd.service "the unit"
same "$(systemctl is-enabled repmgrd)" enabled "the unit"
until_true "{ as 'repmgr -f /etc/repmgr.conf adopt --dry-run' 2>&1 || true; } | grep 'a repmgrd of repmgr 5 runs there'"
types 'systemctl restart postgresql@$major-main' # it needs repmgr.so
server
until_true '[ "$(program)" = "$theirs" ]'

echo "== the cluster is taken over"
types 'systemctl stop repmgrd'
same "$(pid)" "" "what runs after systemctl stop"
types "as 'repmgr -f /etc/repmgr.conf adopt'"
types 'systemctl start repmgrd'
same "$(program)" /usr/bin/repmgrd "what runs"
same "$(ps -o user= -p "$(pid)")" postgres "its user"
same "$(systemctl show -p MainPID --value repmgrd)" "$(pid)" "what systemd watches"
same "$(cat /run/repmgrd.pid)" "$(pid)" "the pid file"
until_true "as 'repmgr service status' | grep -q '| running |'"
types "as 'repmgr service status'"
types 'systemctl reload repmgrd'
until_true 'grep -q "configuration reloaded" /var/log/postgresql/repmgrd.log'

echo "== it is killed, and is started again"
old=$(pid)
kill -9 "$old"
until_true '[ -n "$(systemctl show -p MainPID --value repmgrd)" ] && [ "$(systemctl show -p MainPID --value repmgrd)" != 0 ] && [ "$(systemctl show -p MainPID --value repmgrd)" != '"$old"' ]'
until_true 'systemctl is-active repmgrd'
server

echo "== a server that repmgrd has started outlives it"
types 'systemctl stop repmgrd postgresql@$major-main'
types 'systemctl start repmgrd'
until_true 'systemctl is-active repmgrd'
# as repmgrd would, in its control group
group=$(systemctl show -p ControlGroup --value repmgrd)
for procs in /sys/fs/cgroup{/unified,/systemd,}"$group/cgroup.procs"; do [ ! -e "$procs" ] || break; done
bash -c "echo \$\$ >$procs && exec runuser -u postgres -- /usr/lib/postgresql/$major/bin/pg_ctl -D /var/lib/postgresql/$major/main -o '-c config_file=/etc/postgresql/$major/main/postgresql.conf' -l /tmp/server.log -w start" >/tmp/log || { cat /tmp/log /tmp/server.log; fail "pg_ctl"; }
server
grep -q "^$(head -n 1 /var/lib/postgresql/$major/main/postmaster.pid)\$" "$procs" || fail "it is not in the control group of repmgrd"
types 'systemctl restart repmgrd'
server
types "apt-get install -y -q --reinstall $deb >/tmp/log" # an upgrade restarts what runs
same "$(program)" /usr/bin/repmgrd "what runs"
server
types 'systemctl stop repmgrd'
server
same "$(pid)" "" "what runs"

echo "== REPMGRD_ENABLED=no"
sed -i 's/=yes/=no/' /etc/default/repmgrd
types 'systemctl start repmgrd'
same "$(pid)" "" "what runs"
journalctl --no-pager -u repmgrd -n 20 | grep 'REPMGRD_ENABLED=no'
sed -i 's/=no/=yes/' /etc/default/repmgrd
types 'systemctl start repmgrd'
until_true 'systemctl is-active repmgrd'

echo "== it is removed"
types 'apt-get remove -y -q repmgr-go >/tmp/log'
same "$(pid)" "" "what runs"
server
same "$(dpkg-query -W -f '${Status}' postgresql-$major-repmgr)" "install ok installed" "repmgr 5"
types 'systemctl start repmgrd'
until_true '[ "$(program)" = /usr/lib/postgresql/$major/bin/repmgrd ]'
same "$(systemctl show -p FragmentPath --value repmgrd)" /run/systemd/generator.late/repmgrd.service "the unit"
types 'systemctl stop repmgrd'
runuser -u postgres -- /usr/lib/postgresql/$major/bin/pg_ctl -D /var/lib/postgresql/$major/main -m fast stop >/dev/null
echo passed
