#!/bin/bash
# rpm.sh RPM: installs our RPM on a machine that machine.sh has made, where PostgreSQL 15 and 16 are laid out as RPMs of
# PGDG do it, 15 with repmgr 5. There are no RPMs of PostgreSQL here, so these are files with their names.
set -euo pipefail
rpm=$1
units=/usr/lib/systemd/system

fail() { echo "FAILED: $*"; exit 1; }
same() { [ "$1" = "$2" ] || fail "$3: \"$1\", want \"$2\""; }
snapshot() { find /usr/pgsql-* /usr/bin $units /etc/systemd /usr/libexec -printf '%p %y %m %l\n' | sort; }
# merged UNIT KEY: what systemd itself has for the unit when all drop-ins are read
merged() {
	setpriv --reuid=nobody --regid=nogroup --clear-groups /lib/systemd/systemd --test --system --unit="$1" >/tmp/merged 2>&1 || { tail -n 20 /tmp/merged; fail "systemd --test"; }
	sed -n "/^\t-> Unit $1:/,/^\t-> Unit /p" /tmp/merged | tr -d '\t' | sed -n "s/^$2: //p" | grep . || fail "$1 has no $2"
}
# started UNIT: the pid file that the daemon of this unit would have, asked of repmgrd with the command line and the environment of the unit
started() {
	local line
	line=$(merged "$1" "Command Line" | head -n 1)
	env -S "$(merged "$1" Environment | tr '\n' ' ')" sh -c "$(echo "$line" | tr -d '\\') --show-pid-file"
}

for major in 15 16; do
	mkdir -p "/usr/pgsql-$major/bin"
	printf '#!/bin/sh\n' >"/usr/pgsql-$major/bin/pg_ctl"
	chmod 755 "/usr/pgsql-$major/bin/pg_ctl"
done
for name in repmgr repmgrd; do
	printf '#!/bin/sh\necho repmgr 5\n' >"/usr/pgsql-15/bin/$name"
	chmod 755 "/usr/pgsql-15/bin/$name"
done
rm -f /usr/bin/repmgr /usr/bin/repmgrd # of Debian, where it has them
cat >$units/repmgr-15.service <<'END'
[Unit]
Description=as repmgr 5's packages have it

[Service]
Type=forking
User=postgres
Group=postgres
PIDFile=/run/repmgr/repmgrd-15.pid
Environment=REPMGRDCONF=/etc/repmgr/15/repmgr.conf
Environment=PIDFILE=/run/repmgr/repmgrd-15.pid
ExecStart=/usr/pgsql-15/bin/repmgrd -f ${REPMGRDCONF} -p ${PIDFILE} -d --verbose
ExecStop=/usr/bin/kill -TERM $MAINPID
ExecReload=/usr/bin/kill -HUP $MAINPID
TimeoutSec=300

[Install]
WantedBy=multi-user.target
END
for major in 15 16; do # what a playbook of edb-ansible writes
	mkdir -p "/etc/systemd/system/repmgr-$major.service.d" "/etc/repmgr/$major"
	cat >"/etc/systemd/system/repmgr-$major.service.d/override.conf" <<END
[Unit]
After=postgresql-$major.service

[Service]
User=postgres
Group=postgres
RuntimeDirectory='repmgr'

Environment=REPMGRDCONF=/etc/repmgr/$major/repmgr-main.conf
END
	printf "node_id=%s\nconninfo='host=/nonexistent'\n" "$major" >"/etc/repmgr/$major/repmgr-main.conf"
	printf "node_id=1\nconninfo=''\nbroken" >"/etc/repmgr/$major/repmgr.conf"
done
snapshot >/tmp/before

for again in 1 2; do
	echo "== installed, $again"
	rpm -i --nodeps $([ $again = 1 ] || echo --replacepkgs) "$rpm"
	/usr/bin/repmgr --version
	same "$(readlink /usr/pgsql-16/bin/repmgrd)" /usr/bin/repmgrd "16, which had no repmgr"
	same "$(/usr/pgsql-15/bin/repmgr)" "repmgr 5" "15, which had one"
	for major in 15 16; do
		unit=repmgr-$major.service
		systemd-analyze verify --man=no $unit || fail "systemd-analyze verify $unit"
		same "$(merged $unit Environment | xargs)" "REPMGRDCONF=/etc/repmgr/$major/repmgr-main.conf PIDFILE=/run/repmgr/repmgrd-$major.pid" "the variables of $unit"
		same "$(merged $unit "Command Line" | head -n 1 | tr -d '\\"')" '/usr/bin/repmgrd -f ${REPMGRDCONF} -p ${PIDFILE} --daemonize=false' "the command of $unit"
		same "$(merged $unit Type) $(merged $unit KillMode) $(merged $unit User) $(merged $unit RuntimeDirectory)" "notify process postgres repmgr" $unit
		same "$(started $unit)" "/run/repmgr/repmgrd-$major.pid" "what repmgrd makes of $unit" # it reads the configuration first
		same "$(systemctl --root=/ is-enabled $unit || true)" disabled "$unit"
	done
	systemd-analyze verify --man=no repmgrd.service || fail "systemd-analyze verify"
	same "$(systemctl --root=/ is-enabled repmgrd.service || true)" disabled "a new install"
done
mv /etc/repmgr/16/repmgr-main.conf /etc/repmgr/16/other.conf
! started repmgr-16.service 2>/tmp/log || fail "the configuration of the drop-in is not read"
grep repmgr-main.conf /tmp/log

echo "== the server of 16 is gone"
rm /usr/pgsql-16/bin/pg_ctl
/usr/libexec/repmgr-go/majors link
[ ! -e /usr/pgsql-16 ] && [ ! -e $units/repmgr-16.service ] || fail "something is left"
mkdir -p /usr/pgsql-16/bin
printf '#!/bin/sh\n' >/usr/pgsql-16/bin/pg_ctl
chmod 755 /usr/pgsql-16/bin/pg_ctl
/usr/libexec/repmgr-go/majors link

echo "== removed"
rpm -e repmgr-go
snapshot >/tmp/after
diff /tmp/before /tmp/after || fail "not everything is as before"
echo passed
