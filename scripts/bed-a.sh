#!/bin/bash
# bed-a.sh [-u USER] [-s STATEDIR] COMMAND [ARG...]
#
# Runs COMMAND as an unprivileged user who can use rootless Podman and FUSE, on
# a host that need not be set up for either, and leaves nothing behind.
#
#   -u USER      who to be. A user that the host does not have exists only
#                inside: passwd, group, subuid and subgid are private copies.
#                Default: vfbed.
#   -s STATEDIR  where containers and images are kept, for runs that share an
#                image. Default: a new directory, deleted at the end.
#
# What is private: mounts ('/' is shared inside, /run is empty, /dev/fuse is
# open to the user, cgroup v2 whatever the host has), processes (all of them
# end with COMMAND, containers and FUSE daemons included), IPC and a cgroup.
# HOME, XDG_RUNTIME_DIR and TMPDIR are the bed's; the working directory stays.
# Build tests outside with `go test -c` and run the binary inside: HOME differs.
#
# A directory named by BED_GO (a GOROOT that the user may not reach, such as one
# below root's home) is shown as /run/bed/go, and its bin comes first in PATH.
#
# Exit status: COMMAND's; 64 usage, 77 when something needed is missing.
# Not covered: systemd, and limits whose cgroup controllers the host keeps.
set -euo pipefail

user=vfbed
state=
while getopts u:s: option; do
	case $option in
	u) user=$OPTARG ;;
	s) state=$OPTARG ;;
	*) exit 64 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { echo "usage: $0 [-u USER] [-s STATEDIR] COMMAND [ARG...]" >&2; exit 64; }
[ "$(id -u)" = 0 ] || { echo "bed-a: root is needed to make namespaces; run it with sudo" >&2; exit 77; }

# Ids of a user that exists only inside. Fixed, so that a kept STATEDIR fits the
# next run.
readonly bed_uid=30999 bed_subuid=1700000000 bed_subcount=65536

outside() {
	local tool need=() own='' child rc=0
	for tool in podman:podman crun:crun newuidmap:uidmap fusermount3:fuse3 catatonit:catatonit \
		setpriv:util-linux unshare:util-linux; do
		command -v "${tool%%:*}" >/dev/null || need+=("${tool##*:}")
	done
	if [ ${#need[@]} -gt 0 ]; then
		echo "bed-a: missing; install with: apt-get install ${need[*]}" >&2
		exit 77
	fi
	if [ -z "$state" ]; then
		state=$(mktemp -d /var/tmp/vfbed.XXXXXX)
		own=1
	fi
	mkdir -p "$state"
	state=$(readlink -f "$state")

	# Whatever kills this script (a test's timeout, a CI job) ends the process
	# namespace too: unshare dies with its parent, and kills its child.
	BED_STAGE=inside BED_CGROUP=vfbed.$$ setpriv --pdeathsig KILL \
		unshare --mount --pid --ipc --fork --kill-child --mount-proc --propagation private \
		"$(readlink -f "$0")" -u "$user" -s "$state" "$@" <&0 &
	child=$!
	trap 'kill -KILL $child 2>/dev/null || :' TERM INT HUP
	while :; do
		rc=0
		wait $child || rc=$?
		kill -0 $child 2>/dev/null || break
	done
	trap - TERM INT HUP
	remove_cgroup
	if [ -n "$own" ]; then
		rm -rf --one-file-system "$state"
	fi
	exit $rc
}

# The v2 tree may not be reachable through the host's own mounts: look at it in
# a mount namespace of its own. Emptied cgroups linger for a moment.
remove_cgroup() {
	unshare --mount --propagation private bash -c '
		umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup || exit 0
		cd /sys/fs/cgroup
		for try in $(seq 50); do
			[ -d "./$1" ] || exit 0
			find "./$1" -depth -type d -exec rmdir {} + 2>/dev/null || sleep .1
		done
		echo "bed-a: cgroup $1 stays behind" >&2' bash "vfbed.$$"
}

# --- everything below runs as root, as process 1 of the private namespaces ---

# require refuses to make a file that would stay on the host.
require() {
	[ -e "$1" ] && return
	echo "bed-a: $1 is missing; install with: apt-get install $2" >&2
	exit 77
}

mount_cgroup() {
	local controller
	# Without nsdelegate: that option would change the host's mount as well.
	umount -R /sys/fs/cgroup
	mount -t cgroup2 cgroup /sys/fs/cgroup
	cg=/sys/fs/cgroup/$BED_CGROUP
	mkdir "$cg" "$cg/init"
	for controller in $(cat "$cg/cgroup.controllers"); do
		echo "+$controller" 2>/dev/null >"$cg/cgroup.subtree_control" || :
	done
	chown "$uid:$gid" "$cg" "$cg"/cgroup.{procs,subtree_control,threads} "$cg/init" "$cg"/init/cgroup.*
	echo $$ >"$cg/init/cgroup.procs"
}

# add_user gives the user an entry in private copies of the account files.
add_user() {
	local file
	if ! getent passwd "$user" >/dev/null; then
		if getent passwd $bed_uid >/dev/null || getent group $bed_uid >/dev/null; then
			echo "bed-a: id $bed_uid is taken on this host; name an existing user with -u" >&2
			exit 77
		fi
		cp /etc/passwd /run/bed/passwd
		cp /etc/group /run/bed/group
		echo "$user:x:$bed_uid:$bed_uid:test bed:$state/home:/bin/bash" >>/run/bed/passwd
		echo "$user:x:$bed_uid:" >>/run/bed/group
		mount --bind /run/bed/passwd /etc/passwd
		mount --bind /run/bed/group /etc/group
	fi
	for file in subuid subgid; do
		grep -q "^$user:" /etc/$file 2>/dev/null && continue
		require /etc/$file passwd
		{ cat /etc/$file; echo "$user:$bed_subuid:$bed_subcount"; } >/run/bed/$file
		chmod 644 /run/bed/$file
		mount --bind /run/bed/$file /etc/$file
	done
}

open_devices() {
	mknod -m 666 /run/bed/fuse c 10 229
	mount --bind /run/bed/fuse /dev/fuse
	if [ -e /dev/net/tun ]; then
		mknod -m 666 /run/bed/tun c 10 200
		mount --bind /run/bed/tun /dev/net/tun
	fi
	require /etc/fuse.conf fuse3
	{ cat /etc/fuse.conf; echo user_allow_other; } >/run/bed/fuse.conf
	mount --bind /run/bed/fuse.conf /etc/fuse.conf
}

# configure_podman writes to ~/.config, never XDG_CONFIG_HOME: the clean-up that
# conmon starts does not get that variable.
configure_podman() {
	local conf=$state/home/.config/containers
	mkdir -p "$state/tmp" "$conf"
	cat >"$conf/storage.conf" <<-END
		[storage]
		driver = "overlay"
		graphroot = "$state/storage"
		runroot = "/run/user/$uid/containers"
	END
	cat >"$conf/containers.conf" <<-END
		[engine]
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		runtime = "crun"
		[containers]
		log_driver = "k8s-file"
		pids_limit = 0
	END
	chown "$uid:$gid" "$state"
	chmod 700 "$state"
	chown -R "$uid:$gid" "$state/home" "$state/tmp"
}

# This namespace began as a copy of the host's, with every mount of a daemon or
# test that runs there: each would live on in here after it was unmounted there.
let_go_of_folders() {
	local point type
	while read -r _ point type _; do
		case $type in
		fuse.vfolder | fuse.fusetest) umount -l "$(printf '%b' "$point")" ;;
		esac
	done </proc/self/mounts
}

inside() {
	let_go_of_folders
	mount -t tmpfs -o mode=755 bed /run
	mkdir -p /run/bed /run/lock
	add_user
	uid=$(id -u "$user")
	gid=$(id -g "$user")
	mkdir -p "/run/user/$uid"
	chown "$uid:$gid" "/run/user/$uid"
	chmod 700 "/run/user/$uid"
	mount_cgroup
	open_devices
	configure_podman
	if [ -n "${BED_GO:-}" ]; then
		mkdir /run/bed/go
		mount --bind "$BED_GO" /run/bed/go
		export GOROOT=/run/bed/go PATH=/run/bed/go/bin:$PATH
	fi
	# A shared '/' only in here: this namespace has no peers outside.
	mount --make-rshared /
	export HOME=$state/home USER=$user LOGNAME=$user XDG_RUNTIME_DIR=/run/user/$uid TMPDIR=$state/tmp
	unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME XDG_CACHE_HOME DBUS_SESSION_BUS_ADDRESS CONTAINER_HOST \
		BED_STAGE BED_CGROUP
	exec catatonit -- setpriv --reuid "$uid" --regid "$gid" --init-groups --inh-caps=-all "$@"
}

if [ "${BED_STAGE:-}" = inside ]; then
	inside "$@"
else
	outside "$@"
fi
