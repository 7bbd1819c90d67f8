#!/bin/bash
# machine.sh DIR COMMAND...: runs COMMAND as root on a machine of its own, where DIR is /packages: a copy of this one, or of
# the one in REPMGR_PACKAGES_BASE, whose changes are in memory. With REPMGR_PACKAGES_BOOT=1 it is booted, and COMMAND is a unit of
# it; else COMMAND is all that runs. It runs in namespaces of its own, and ends with them. Exit code 77: not possible here.
set -euo pipefail
dir=$1
shift
root=$dir/root
mkdir "$root" "$dir/changes"
mount -t tmpfs tmpfs "$dir/changes"
mkdir "$dir/changes/upper" "$dir/changes/work"
mount -t overlay overlay -o "lowerdir=${REPMGR_PACKAGES_BASE:-/},upperdir=$dir/changes/upper,workdir=$dir/changes/work" "$root" || exit 77
mkdir "$root/packages"
cp "$dir"/*.* "$root/packages/"

if [ -n "${REPMGR_PACKAGES_BOOT:-}" ]; then
	cat >"$root/etc/systemd/system/typed.service" <<-END
		[Unit]
		Description=what is typed
		[Service]
		Type=oneshot
		Environment=TERM=dumb LC_ALL=C
		ExecStart=/bin/bash -c '$* >/packages/log 2>&1; echo \$\$? >/packages/code'
		ExecStopPost=/bin/systemctl --no-block poweroff
	END
	ln -s ../typed.service "$root/etc/systemd/system/multi-user.target.wants/typed.service"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	mount -t proc proc /proc
	mkdir -p /run/systemd
	mount -t tmpfs tmpfs /run/systemd # what systemd-nspawn leaves there
	systemd-nspawn --quiet --register=no --keep-unit --console=pipe --directory="$root" --boot --resolv-conf=off >"$dir/console" 2>&1 </dev/null || true
	cat "$root/packages/log" || tail -n 50 "$dir/console"
	exit "$(cat "$root/packages/code")"
fi
mount -t proc proc "$root/proc"
for there in dev sys; do mount --rbind "/$there" "$root/$there"; done
for tmp in run tmp; do mount -t tmpfs -o mode=1777 tmpfs "$root/$tmp"; done
chmod 755 "$root/run"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing is started by being installed
chmod 755 "$root/usr/sbin/policy-rc.d"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
