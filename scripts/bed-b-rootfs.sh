#!/bin/bash
# bed-b-rootfs.sh DIR: makes in DIR the root file system of a bare Debian 12 for bed-b.sh.
#
# Bare means what a person has after installing Debian and typing
# `sudo apt install git make`: systemd, sudo, a user with a password-less
# sudo (`dev`), and nothing that vfolder itself needs. About 300 MB; it takes
# one to two minutes and is needed once, since bed-b.sh never writes to it.
#
# Needs root and mmdebstrap. The suite can be set with VFOLDER_BED_SUITE.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "bed-b-rootfs: needs root" >&2; exit 1; }
command -v mmdebstrap >/dev/null || { echo "bed-b-rootfs: mmdebstrap is missing; install it with: apt-get install mmdebstrap" >&2; exit 1; }
dir=$1
if [ -e "$dir/etc/vfolder-bed" ]; then echo "bed-b-rootfs: $dir is there already" >&2; exit 0; fi
if [ -e "$dir" ] && [ -n "$(ls -A "$dir")" ]; then echo "bed-b-rootfs: $dir is not empty" >&2; exit 1; fi

mmdebstrap --quiet --mode=root --variant=minbase \
	--include=systemd-sysv,dbus,libpam-systemd,sudo,passwd,login,procps,iproute2,util-linux,ca-certificates,git,make,adduser \
	--customize-hook='chroot "$1" useradd -m -s /bin/bash -G sudo dev' \
	--customize-hook='printf "dev ALL=(ALL) NOPASSWD: ALL\n" >"$1/etc/sudoers.d/dev"; chmod 440 "$1/etc/sudoers.d/dev"' \
	--customize-hook='printf "127.0.0.1 localhost bed-b\n::1 localhost\n" >"$1/etc/hosts"; echo bed-b >"$1/etc/hostname"' \
	--customize-hook='touch "$1/etc/vfolder-bed"' \
	"${VFOLDER_BED_SUITE:-bookworm}" "$dir"
echo "bed-b-rootfs: made $dir"
