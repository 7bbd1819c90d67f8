#!/bin/bash
# debian.sh DEB MAJOR: installs our package over Debian's repmgr 5, and removes it, on a machine that machine.sh has made.
set -euo pipefail
deb=$1 major=$2
bin=/usr/lib/postgresql/$major/bin
rm -f /var/lib/man-db/auto-update # nobody reads manual pages here
pid=

fail() { echo "FAILED: $*"; exit 1; }
same() { [ "$1" = "$2" ] || fail "$3: \"$1\", want \"$2\""; }
has() { case $1 in *"$2"*) ;; *) fail "no \"$2\" in: $1" ;; esac }
install() { dpkg --force-unsafe-io -i "$1" >/tmp/log 2>&1 || { cat /tmp/log; fail "dpkg -i $1"; }; grep repmgr-go: /tmp/log || true; }
remove() { dpkg --force-unsafe-io "$1" "$2" >/tmp/log 2>&1 || { cat /tmp/log; fail "dpkg $1 $2"; }; }
# until_true LINE: asked again until it succeeds, for half a minute
until_true() { for _ in $(seq 300); do eval "$1" >/dev/null 2>&1 && return; read -rt 0.1 <> <(:) || true; done; fail "never true: $1"; }
# everything that is of repmgr, with its content, and what is started at boot
snapshot() {
	find /usr/bin /usr/lib/postgresql /usr/lib/systemd/system /etc/default /etc/init.d /etc/systemd /etc/rc?.d /usr/share/postgresql /var/lib/systemd/deb-systemd-helper-* \
		-printf '%p %y %m %u %l\n' 2>/dev/null | sort
	find /usr/bin /usr/lib/postgresql/*/bin /usr/lib/postgresql/*/lib /etc/default /etc/init.d -name '*repmgr*' -type f -exec sha256sum {} + | sort
	dpkg-divert --list
}
# theirs: the packages of repmgr 5 are whole
theirs() {
	same "$(dpkg-query -W -f '${Status} ' repmgr-common "postgresql-$major-repmgr")" "install ok installed install ok installed " "the packages of repmgr 5"
	(cd / && md5sum --quiet -c "/var/lib/dpkg/info/postgresql-$major-repmgr.md5sums.rest") || fail "a file of postgresql-$major-repmgr has changed"
	has "$("$bin/repmgr.repmgr5" --version)" "repmgr5 5."
	apt-get check >/tmp/log 2>&1 || { cat /tmp/log; fail "dependencies are broken"; }
}
ours() {
	for path in /usr/bin "$bin"; do
		has "$("$path/repmgr" --version)" "repmgr for Go"
		has "$("$path/repmgrd" --version)" "repmgr for Go"
	done
	has "$(repmgr --cluster "$major/main" --version)" "repmgr for Go"
	cmp /etc/default/repmgrd /tmp/default || fail "/etc/default/repmgrd has changed"
}
enabled() { systemctl --root=/ is-enabled repmgrd.service || true; }

echo "== before: Debian's repmgr 5, switched on"
has "$("$bin/repmgr" --version)" "repmgr 5."
grep -v "bin/repmgr" "/var/lib/dpkg/info/postgresql-$major-repmgr.md5sums" >"/var/lib/dpkg/info/postgresql-$major-repmgr.md5sums.rest"
grep -q repmgr.so "/var/lib/dpkg/info/postgresql-$major-repmgr.md5sums.rest"
cat >/etc/default/repmgrd <<END
REPMGRD_ENABLED=yes
REPMGRD_CONF="/etc/repmgr.conf"
REPMGRD_OPTS="--daemonize --verbose"
#REPMGRD_USER=postgres
REPMGRD_PIDFILE=/var/run/repmgrd.pid
END
cp /etc/default/repmgrd /tmp/default
snapshot >/tmp/before

echo "== installed"
install "$deb"
ours
theirs
same "$(enabled)" enabled "an old install that was switched on"

echo "== installed again, and its scripts run again"
install "$deb"
script() { DPKG_MAINTSCRIPT_PACKAGE=repmgr-go "/var/lib/dpkg/info/repmgr-go.$1" "${@:2}"; }
script preinst upgrade 0.1.0
script postinst configure 0.1.0
script postinst triggered /usr/lib/postgresql
ours
theirs
systemctl --root=/ disable repmgrd.service 2>/dev/null

echo "== upgraded"
dpkg-deb -R "$deb" /tmp/newer
sed -i 's/^Version: .*/Version: 999/' /tmp/newer/DEBIAN/control
dpkg-deb -Znone -b /tmp/newer /tmp/newer.deb >/dev/null
install /tmp/newer.deb
same "$(dpkg-query -W -f '${Version}' repmgr-go)" 999 "the version"
ours
theirs
same "$(enabled)" disabled "what an operator has disabled"
systemctl --root=/ enable repmgrd.service 2>/dev/null

echo "== the unit"
systemd-analyze verify --man=no /usr/lib/systemd/system/repmgrd.service || fail "systemd-analyze verify"
service=/usr/lib/repmgr-go/service
check() { # WANT LINES: what the unit does where /etc/default/repmgrd has these lines
	printf '%s\n' "$2" >/etc/default/repmgrd
	local said code=0
	said=$($service check 2>&1) || code=$?
	echo "$(echo $2): $code $said"
	same "$code" "$1" "$2"
}
check 0 "REPMGRD_ENABLED=yes REPMGRD_CONF=/etc/repmgr.conf"
check 0 "REPMGRD_ENABLED=Y REPMGRD_CONF=/etc/repmgr.conf"
check 1 "REPMGRD_ENABLED=no REPMGRD_CONF=/etc/repmgr.conf"
check 1 "REPMGRD_ENABLED=yes"
check 0 "#REPMGRD_ENABLED=no"
check 1 "REPMGRD_ENABLED=yes REPMGRD_CONF=/etc/repmgr.conf REPMGRD_BIN=/nonexistent"

echo "== it starts repmgrd as the file says, and stops it"
cat >/etc/repmgr.conf <<END
node_id=1
conninfo='host=/nonexistent user=postgres dbname=postgres connect_timeout=2'
log_file='/tmp/repmgrd.log'
END
cp /tmp/default /etc/default/repmgrd
mkdir -p /run/postgresql
chown postgres /run/postgresql
$service start &
pid=$!
until_true 'grep -q "repmgrd started" /tmp/repmgrd.log'
same "$(cat /run/repmgrd.pid)" $pid "REPMGRD_PIDFILE"
same "$(ps -o user=,comm= -p $pid | xargs)" "postgres repmgrd" "the process"
has "$(tr '\0' ' ' </proc/$pid/cmdline)" "/usr/bin/repmgrd --config-file=/etc/repmgr.conf --daemonize --verbose --daemonize=false"
has "$(tr '\0' ' ' </proc/$pid/environ)" "HOME=$(getent passwd postgres | cut -d: -f6) "
same "$(ps -o supgrp= -p $pid | tr , '\n' | sort | xargs)" "$(id -Gn postgres | tr ' ' '\n' | sort | xargs)" "its groups"
$service stop
[ ! -e /proc/$pid ] || grep -q '^State:.Z' /proc/$pid/status || fail "it still runs"
grep -q 'repmgrd stopped' /tmp/repmgrd.log || { cat /tmp/repmgrd.log; fail "it was killed"; }
$service stopped
[ ! -e /run/repmgrd.pid ] || fail "its pid file is left"
wait
echo "REPMGRD_USER=nobody2" >/etc/default/repmgrd
! $service start 2>/tmp/log || fail "started as nobody2"
has "$(cat /tmp/log)" "there is no user nobody2"
cp /tmp/default /etc/default/repmgrd

echo "== a repmgrd that the init script has started is stopped by the unit, too"
mkdir /tmp/five
cp /bin/sleep /tmp/five/repmgrd
start-stop-daemon --start --background --make-pidfile --pidfile /var/run/repmgrd.pid --exec /tmp/five/repmgrd -- 600
until_true 'pgrep -x repmgrd'
$service stop
! pgrep -x repmgrd || fail "it still runs"
$service stopped

echo "== a version of PostgreSQL comes, with its repmgr 5, and goes"
small() { # NAME FILE: a package with one file that says its name
	mkdir -p "/tmp/$1/DEBIAN" "/tmp/$1/$(dirname "$2")"
	printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: test\n' "$1" >"/tmp/$1/DEBIAN/control"
	printf '#!/bin/sh\necho %s\n' "$1" >"/tmp/$1/$2"
	chmod 755 "/tmp/$1/$2"
	dpkg-deb -b "/tmp/$1" "/tmp/$1.deb" >/dev/null
}
small postgresql-99 usr/lib/postgresql/99/bin/pg_ctl
small postgresql-99-repmgr usr/lib/postgresql/99/bin/repmgr
new=/usr/lib/postgresql/99/bin
install /tmp/postgresql-99.deb
has "$($new/repmgr --version)" "repmgr for Go"
install /tmp/postgresql-99-repmgr.deb
has "$($new/repmgr --version)" "repmgr for Go"
same "$($new/repmgr.repmgr5)" postgresql-99-repmgr "what was set aside"
remove -r postgresql-99-repmgr
has "$($new/repmgr --version)" "repmgr for Go"
install /tmp/postgresql-99-repmgr.deb
remove -r postgresql-99-repmgr
remove -r postgresql-99
[ ! -e /usr/lib/postgresql/99 ] || fail "left: $(find /usr/lib/postgresql/99)"
ours

echo "== removed"
remove -r repmgr-go
snapshot >/tmp/after
diff /tmp/before /tmp/after || fail "not everything is as before"
has "$("$bin/repmgr" --version)" "repmgr 5."
cmp /etc/default/repmgrd /tmp/default

echo "== purged after another time"
install "$deb"
remove -P repmgr-go
snapshot >/tmp/after
diff /tmp/before /tmp/after || fail "not everything is as before"

echo "== not switched on: nor is ours"
rm /etc/default/repmgrd
install "$deb"
same "$(enabled)" disabled "a new install"
echo passed
