#!/bin/bash
# base.sh ROOT: makes a bare Debian with PostgreSQL and Debian's repmgr 5 in ROOT, from the mirror. Nothing runs in it.
set -euo pipefail
root=$1
mkdir -p "$root"
debootstrap --variant=minbase --include=init,rpm,procps "${REPMGR_PACKAGES_SUITE:-bookworm}" "$root" http://deb.debian.org/debian
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf"
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C bash -ec '
	install() { apt-get -y -q --no-install-recommends -o Dpkg::Options::=--force-confold install "$@"; }
	install postgresql
	install "postgresql-$(ls /usr/lib/postgresql)-repmgr"
'
rm "$root/usr/sbin/policy-rc.d"
