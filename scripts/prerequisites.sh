#!/bin/bash
# prerequisites.sh [--check] [--yes] [--test] [--user NAME] [--no-system]
#
# Brings a Debian 12 (or newer) machine to where vfolder can be built and run:
# Debian packages, a new enough Go, and three settings of the system. Each
# change is printed and asked for first. What is right already is not touched,
# so it can be run again at any time.
#
#   --check      only report; exit 1 if something is missing
#   --yes        do not ask
#   --test       also what the tests and benchmarks need
#   --user NAME  who will run sessions (default: who calls this, unless root)
#   --no-system  leave the settings of the system alone
#
# Root is needed for packages and settings; as another user it calls sudo.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
check='' yes='' tests='' system=1 user=''
while [ $# -gt 0 ]; do
	case $1 in
	--check) check=1 ;;
	--yes) yes=1 ;;
	--test) tests=1 ;;
	--no-system) system='' ;;
	--user) user=${2:?--user needs a name}; shift ;;
	-h | --help) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
	shift
done
if [ -z "$user" ] && [ "$(id -u)" != 0 ]; then user=$(id -un); fi
repo=$(dirname "$(dirname "$(readlink -f "$0")")")

# The toolchain that is fetched where no installed Go is new enough: a module
# like any other, checked against the hash that a go.sum would hold.
go_version=1.26.8
declare -A go_sum=(
	[amd64]=h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=
	[arm64]=h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=
)

packages=(
	podman crun conmon uidmap fuse3 slirp4netns catatonit netavark aardvark-dns # sessions
	mmdebstrap busybox-static                                                   # session images
	gcc libc6-dev make git ca-certificates                                      # building
	python3 curl procps iproute2                                                # the demo's own checks
)
[ ! -d /run/systemd/system ] || packages+=(dbus-user-session)
[ -z "$tests" ] || packages+=(sqlite3 python3-pip python3-wheel python3-setuptools attr strace)

missing=0
ok() { echo "ok       $1"; }
# change WHAT COMMAND...: prints, asks and does; with --check it only counts.
change() {
	local what=$1 answer
	shift
	echo "missing  $what"
	if [ -n "$check" ]; then
		missing=1
		return
	fi
	if [ -z "$yes" ]; then
		if ! { : </dev/tty; } 2>/dev/null; then
			echo "prerequisites: no terminal to ask on; allow the changes with --yes" >&2
			exit 1
		fi
		printf '         do it? [y/N] ' >/dev/tty
		read -r answer </dev/tty
		case $answer in [yY]*) ;; *) echo "prerequisites: stopped; nothing else was changed" >&2; exit 1 ;; esac
	fi
	"$@"
}
root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "prerequisites: neither root nor sudo; run as root: $*" >&2
		exit 1
	fi
}

install_packages() {
	local log
	log=$(mktemp)
	if ! { root apt-get update -q && root env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "$@"; } >"$log" 2>&1; then
		tail -n 30 "$log" >&2
		echo "prerequisites: apt-get failed; its whole output is in $log" >&2
		exit 1
	fi
	rm -f "$log"
	echo "         installed"
}

check_packages() {
	local p want=()
	for p in "${packages[@]}"; do
		[ "$(dpkg-query -Wf '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || want+=("$p")
	done
	if [ ${#want[@]} = 0 ]; then
		ok "Debian packages: ${packages[*]}"
	else
		change "Debian packages, to be installed with apt-get: ${want[*]}" install_packages "${want[@]}"
	fi
}

# Debian 12's own Go is too old for this project but can fetch a new one as a
# module. It is only unpacked into a scratch directory, never installed.
install_go() {
	local arch tmp package boot answer sum dir dest
	arch=$(dpkg --print-architecture)
	[ -n "${go_sum[$arch]:-}" ] || { echo "prerequisites: no known Go $go_version for $arch; install Go $go_version or newer" >&2; exit 1; }
	tmp=$(mktemp -d)
	if boot=$(command -v go); then
		boot=$(readlink -f "$boot")
	else
		package=$(apt-cache depends golang-go 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^golang-1\.[0-9]+-go$/ {print $2}')
		[ -n "$package" ] || { root apt-get update -q >/dev/null; package=$(apt-cache depends golang-go | awk '$1 == "Depends:" && $2 ~ /^golang-1\.[0-9]+-go$/ {print $2}'); }
		[ -n "$package" ] || { echo "prerequisites: apt knows no golang-go; install Go $go_version or newer" >&2; exit 1; }
		(cd "$tmp" && apt-get download -q "$package" >/dev/null && dpkg-deb -x "$package"_*.deb . && rm -f "$package"_*.deb)
		boot=$(echo "$tmp"/usr/lib/go-1.*/bin/go)
		export GOROOT=${boot%/bin/go}
	fi
	answer=$(cd "$tmp" && GOTOOLCHAIN=local GO111MODULE=on GOWORK=off GOFLAGS=-modcacherw GOMODCACHE=$tmp/mod GONOSUMDB=golang.org/toolchain \
		"$boot" mod download -json "golang.org/toolchain@v0.0.1-go$go_version.linux-$arch") || { echo "$answer" >&2; exit 1; }
	unset GOROOT
	sum=$(echo "$answer" | sed -n 's/.*"Sum": "\(.*\)",/\1/p')
	dir=$(echo "$answer" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
	if [ "$sum" != "${go_sum[$arch]}" ]; then
		echo "prerequisites: the Go toolchain that came has the hash $sum, not ${go_sum[$arch]}: not installed" >&2
		exit 1
	fi
	# Modules carry no execute bits.
	chmod -R u+rwX,go+rX "$dir"
	chmod 755 "$dir"/bin/* "$dir"/pkg/tool/*/*
	dest=${XDG_CACHE_HOME:-$HOME/.cache}/vfolder
	mkdir -p "$dest"
	rm -rf "$dest/go"
	mv "$dir" "$dest/go"
	rm -rf "$tmp"
	echo "         installed as $dest/go"
}

check_go() {
	local go
	if go=$("$repo/scripts/find-go.sh"); then
		ok "Go: $go ($(cd / && GOTOOLCHAIN=local "$go" env GOVERSION))"
	else
		change "Go $(awk '$1 == "go" {print $2; exit}' "$repo/go.mod") or newer; Go $go_version would be fetched through the Go module proxy into ${XDG_CACHE_HOME:-$HOME/.cache}/vfolder/go" install_go
	fi
}

allow_other() {
	if [ -s /etc/fuse.conf ] && [ -n "$(tail -c 1 /etc/fuse.conf)" ]; then echo | root tee -a /etc/fuse.conf >/dev/null; fi
	echo user_allow_other | root tee -a /etc/fuse.conf >/dev/null
}

add_subids() {
	local file=$1 next
	next=$(awk -F: 'BEGIN {m = 100000} $2 + $3 > m {m = $2 + $3} END {print m}' "$file" 2>/dev/null || echo 100000)
	echo "$user:$next:65536" | root tee -a "$file" >/dev/null
}

check_system() {
	local file
	if grep -qsE '^[[:space:]]*user_allow_other[[:space:]]*$' /etc/fuse.conf; then
		ok "/etc/fuse.conf has user_allow_other"
	else
		change "/etc/fuse.conf gets the line user_allow_other (a container's user is another user to FUSE)" allow_other
	fi
	if findmnt -no PROPAGATION / | grep -q shared; then
		ok "'/' is a shared mount"
	else
		change "'/' becomes a shared mount, until the next boot: mount --make-rshared / (else containers do not see new mounts)" root mount --make-rshared /
	fi
	for file in /etc/subuid /etc/subgid; do
		if grep -qs -e "^$user:" -e "^$(id -u "$user"):" "$file"; then
			ok "$file has ids for $user"
		else
			change "$file gets 65536 ids for $user (rootless containers have users of their own)" add_subids "$file"
		fi
	done
	if [ -e /dev/fuse ]; then
		ok "/dev/fuse"
	else
		change "/dev/fuse, until the next boot: modprobe fuse" root modprobe fuse
	fi
	# Not changed here: these are decisions of whoever runs the machine.
	if [ "$(cat /proc/sys/kernel/unprivileged_userns_clone 2>/dev/null || echo 1)" = 0 ] || [ "$(cat /proc/sys/user/max_user_namespaces)" = 0 ]; then
		echo "missing  user namespaces for unprivileged users; allow them with: sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536"
		missing=1
	fi
}

check_packages
check_go
if [ -z "$system" ]; then
	:
elif [ -n "$user" ]; then
	check_system
else
	ok "settings of the system: none needed for root (sessions belong to an unprivileged user: --user NAME)"
fi
exit $missing
