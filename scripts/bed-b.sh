#!/bin/bash
# bed-b.sh [-u USER] [-n] [-s DIR] ROOTFS COMMAND...
#
# Boots ROOTFS (see bed-b-rootfs.sh) with systemd as its first process and
# runs COMMAND in it: what a real Debian machine does, on a host that need not
# run systemd itself. The exit status is COMMAND's. Nothing persists: ROOTFS
# is the lower layer of an overlay, everything written is deleted at the end.
#
#   -u USER  run COMMAND in a login session of USER (user manager, sudo as
#            configured there) instead of as root
#   -n       a private network that has only loopback
#   -s DIR   show DIR of the host as /host, read-only
#
# How this host reaches package sources is handed in at run time: resolv.conf,
# certificate authorities, apt's proxy settings and the proxy variables of the
# environment. Set VFOLDER_BED_VERBOSE=1 to see the boot's console.
#
# Needs root, systemd-nspawn and cgroup v2 in the kernel (a hybrid host will
# do). Memory and pids limits are not enforced where the host's controllers
# are bound to cgroup v1.
set -euo pipefail

user=root net=host share=
while getopts u:ns: o; do
	case $o in
	u) user=$OPTARG ;;
	n) net=private ;;
	s) share=$(readlink -f "$OPTARG") ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
rootfs=$(readlink -f "$1")
shift
[ "$(id -u)" = 0 ] || { echo "bed-b: needs root" >&2; exit 1; }
for tool in systemd-nspawn nsenter unshare; do
	command -v $tool >/dev/null || { echo "bed-b: $tool is missing; install it with: apt-get install systemd-container util-linux" >&2; exit 1; }
done
[ -e "$rootfs/usr/lib/systemd/systemd" ] || { echo "bed-b: no systemd in $rootfs; make it with: scripts/bed-b-rootfs.sh $rootfs" >&2; exit 1; }

# Stage 1, outside: a pid namespace whose end takes everything with it, and
# the clean-up of what outlives it (the cgroup and the scratch directory).
if [ -z "${BED_B_WORK:-}" ]; then
	work=$(mktemp -d /var/tmp/vfolder-bed-b.XXXXXX)
	cgroup=vfolder-bed-b.$$
	opts=(-u "$user")
	[ $net = host ] || opts+=(-n)
	[ -z "$share" ] || opts+=(-s "$share")
	rc=0
	BED_B_WORK=$work BED_B_CGROUP=$cgroup setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
		"$(readlink -f "$0")" "${opts[@]}" "$rootfs" "$@" || rc=$?
	unshare --mount --propagation private bash -c '
		umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && cd /sys/fs/cgroup || exit
		for _ in $(seq 50); do
			find "./$1" -depth -type d -exec rmdir {} + 2>/dev/null
			[ -d "./$1" ] || exit 0
			sleep .1
		done
		echo "bed-b: cgroup $1 is still busy" >&2' - "$cgroup"
	rm -rf --one-file-system "$work"
	exit $rc
fi

# Stage 2, inside. A cgroup tree of our own; never with -o nsdelegate, which
# is a flag of the whole hierarchy and would change the host's own mount.
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# Copies of mounts that daemons and tests of the host may want to be rid of.
while read -r _ point type _; do
	case $type in
	fuse.vfolder | fuse.fusetest) umount -l "$(printf '%b' "$point")" ;;
	esac
done </proc/self/mounts
mkdir -p "/sys/fs/cgroup/$BED_B_CGROUP/supervisor"
echo $$ >"/sys/fs/cgroup/$BED_B_CGROUP/supervisor/cgroup.procs"
cp -L /etc/resolv.conf "$BED_B_WORK/resolv.conf" 2>/dev/null || :
mount -t tmpfs -o mode=755 tmpfs /run
mknod -m 666 /run/fuse c 10 229
mknod -m 666 /run/tun c 10 200

# Container storage needs overlayfs, which cannot lie on an overlay: /home
# and /var/tmp are plain directories.
root=$BED_B_WORK/root
mkdir -p "$BED_B_WORK"/{upper,work,root,vartmp,home}
chmod 755 "$BED_B_WORK"
chmod 1777 "$BED_B_WORK/vartmp"
cp -a "$rootfs/home/." "$BED_B_WORK/home/"
mount -t overlay overlay -o "lowerdir=$rootfs,upperdir=$BED_B_WORK/upper,workdir=$BED_B_WORK/work" "$root"

# The kernel is shared with the host: nothing in here may set its devices,
# modules or sysctls.
for unit in systemd-sysctl systemd-udevd systemd-udev-trigger systemd-modules-load systemd-networkd systemd-timesyncd; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done

env=()
if [ $net = host ]; then
	rm -f "$root/etc/resolv.conf"
	cp "$BED_B_WORK/resolv.conf" "$root/etc/resolv.conf" 2>/dev/null || :
	mkdir -p "$root/usr/local/share/ca-certificates" "$root/etc/ssl/certs"
	cp -rL /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/" 2>/dev/null || :
	cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt" 2>/dev/null || :
	apt-config dump 2>/dev/null | grep -i '^Acquire::.*proxy' >"$root/etc/apt/apt.conf.d/80host-proxy" || :
	for v in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GOPROXY GOSUMDB GONOSUMDB GONOPROXY GOINSECURE GOPRIVATE; do
		[ -z "${!v:-}" ] || env+=(-E "$v=${!v}")
	done
fi

nspawn=(--quiet --directory="$root" --boot --register=no --keep-unit --console=pipe --private-users=no
	--machine=bed-b --hostname=bed-b --capability=all --system-call-filter='@keyring bpf @mount'
	--resolv-conf=off --timezone=off --link-journal=no
	--bind=/run/fuse:/dev/fuse --bind=/run/tun:/dev/net/tun
	--bind="$BED_B_WORK/vartmp:/var/tmp" --bind="$BED_B_WORK/home:/home")
[ $net = host ] || nspawn+=(--private-network)
[ -z "$share" ] || nspawn+=(--bind-ro="$share:/host")
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_LOCK=0
console=$BED_B_WORK/console
[ -z "${VFOLDER_BED_VERBOSE:-}" ] || console=/dev/stderr
systemd-nspawn "${nspawn[@]}" </dev/null >"$console" 2>&1 &
nspawn_pid=$!
trap 'kill -TERM $nspawn_pid 2>/dev/null || :' EXIT

failed() {
	echo "bed-b: $1" >&2
	[ ! -f "$console" ] || tail -n 40 "$console" >&2
	exit 1
}
leader=
for _ in $(seq 600); do
	kill -0 $nspawn_pid 2>/dev/null || failed "systemd-nspawn ended"
	leader=$(awk '{print $1}' "/proc/$nspawn_pid/task/$nspawn_pid/children" 2>/dev/null || :)
	[ -z "$leader" ] || [ ! -S "/proc/$leader/root/run/systemd/private" ] || break
	leader=
	sleep .1
done
[ -n "$leader" ] || failed "systemd did not come up within a minute"
inside=(nsenter -t "$leader" -m -u -i -n -p -C -r -w)
state=
for _ in $(seq 600); do
	state=$("${inside[@]}" systemctl is-system-running 2>/dev/null || :)
	case $state in running | degraded) break ;; esac
	sleep .1
done
case $state in running | degraded) ;; *) failed "systemd is '$state' after a minute" ;; esac

# nspawn mounts two files over /proc; with any such mount the kernel refuses
# a new /proc in a child user namespace, which rootless containers need.
"${inside[@]}" umount /proc/kmsg /proc/sys/kernel/random/boot_id 2>/dev/null || :

run=(--quiet --pipe --wait --collect -p KillMode=mixed "${env[@]}" -E PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
if [ "$user" != root ]; then
	home=$("${inside[@]}" getent passwd "$user" | cut -d: -f6)
	[ -n "$home" ] || failed "no user $user in $rootfs"
	run+=(-p "User=$user" -p PAMName=login -p "WorkingDirectory=$home")
else
	run+=(-E HOME=/root -p WorkingDirectory=/root)
fi
rc=0
"${inside[@]}" systemd-run "${run[@]}" -- "$@" || rc=$?
"${inside[@]}" systemctl poweroff --force 2>/dev/null || :
for _ in $(seq 50); do
	kill -0 $nspawn_pid 2>/dev/null || break
	sleep .1
done
exit $rc
