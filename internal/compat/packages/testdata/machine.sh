#!/bin/bash
# machine.sh DIR COMMAND...: runs COMMAND as root on a machine of its own, where DIR is /packages: a copy of this one whose
# changes are in memory, or, with REPMGR_PACKAGES_CHROOT=1, a bare Debian with PostgreSQL and repmgr 5. It runs in namespaces
# of its own, and ends with them. Exit code 77: this machine can not do that.
set -euo pipefail
dir=$1
shift
root=$dir/root
mkdir "$root"
if [ -n "${REPMGR_PACKAGES_CHROOT:-}" ]; then
	mount -t tmpfs tmpfs "$root"
	debootstrap --variant=minbase --include=init,rpm,procps "${REPMGR_PACKAGES_SUITE:-bookworm}" "$root" http://deb.debian.org/debian >"$dir/log" 2>&1 || { tail -n 30 "$dir/log"; exit 1; }
else
	mkdir "$dir/changes"
	mount -t tmpfs tmpfs "$dir/changes"
	mkdir "$dir/changes/upper" "$dir/changes/work"
	mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/changes/upper,workdir=$dir/changes/work" "$root" || exit 77
fi
mount -t proc proc "$root/proc"
for there in dev sys; do mount --rbind "/$there" "$root/$there"; done
for tmp in run tmp; do mount -t tmpfs -o mode=1777 tmpfs "$root/$tmp"; done
chmod 755 "$root/run"
mkdir "$root/packages"
cp "$dir"/*.* "$root/packages/"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing is started by being installed
chmod 755 "$root/usr/sbin/policy-rc.d"
if [ -n "${REPMGR_PACKAGES_CHROOT:-}" ]; then
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	mkdir -p "$root/etc/postgresql-common"
	echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
	chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends -o Dpkg::Options::=--force-confold install postgresql-15-repmgr >"$dir/log" 2>&1 || { tail -n 30 "$dir/log"; exit 1; }
fi
if [ -n "${REPMGR_PACKAGES_BOOT:-}" ]; then
	rm "$root/usr/sbin/policy-rc.d"
	cat >"$root/etc/systemd/system/typed.service" <<-END
		[Unit]
		Description=what is typed
		[Service]
		Type=oneshot
		Environment=TERM=dumb LC_ALL=C
		ExecStart=/bin/bash -c '$* >/packages/log 2>&1; echo \$\$? >/packages/code'
		ExecStopPost=/bin/systemctl --no-block poweroff
		[Install]
		WantedBy=default.target
	END
	ln -s ../typed.service "$root/etc/systemd/system/multi-user.target.wants/typed.service"
	umount -R "$root/proc" "$root/dev" "$root/sys" "$root/run" "$root/tmp"
	SYSTEMD_LOG_LEVEL=warning systemd-nspawn --quiet --register=no --keep-unit --console=pipe --directory="$root" --boot --resolv-conf=off >"$dir/console" 2>&1 </dev/null || true
	cat "$root/packages/log" || tail -n 50 "$dir/console"
	exit "$(cat "$root/packages/code")"
fi
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
