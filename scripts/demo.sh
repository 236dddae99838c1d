#!/bin/bash
# demo.sh [--yes] [--bed] [--user NAME] [--keep]
#
# Plays a new user's story with the real programs on this machine, checks every
# step and says so: two folders, a rootless container with both, a file in a
# folder and one in the container's home; the container is deleted, the file is
# read back with a plain S3 client, and a second container finds it again.
#
#   --yes        do not ask before the machine is changed (prerequisites.sh)
#   --bed        play in private namespaces (bed-a.sh), whatever this host can
#   --user NAME  as root: the unprivileged user to play as (default
#                vfolder-demo, made here and removed at the end)
#   --keep       leave folders, sessions and the daemon as they are at the end
#
# The daemon and its object store are the demo's own: state that vfolder
# already has on this machine is not touched. What stays: installed packages,
# the build, and the session image of the user who plays.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
yes='' bed='' keep='' user=''
story=''
while [ $# -gt 0 ]; do
	case $1 in
	--yes) yes=--yes ;;
	--bed) bed=1 ;;
	--keep) keep=1 ;;
	--user) user=${2:?--user needs a name}; shift ;;
	--story) story=1 ;; # second half: as the user who plays
	-h | --help) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
	shift
done
self=$(readlink -f "$0")
here=$(dirname "$self")
start=${DEMO_START:-$(date +%s)}
export DEMO_START=$start

step() { printf '\n== %s  [%d s]\n' "$1" $(($(date +%s) - start)); }
fail() { printf 'FAIL  %s\n' "$1"; exit 1; }
pass() { printf 'PASS  %s\n' "$1"; }

# ---------------------------------------------------------------- preparation

# can_run_rootless: crun wants cgroup v2 alone, and a user manager or at least a
# runtime directory has to be there for the user.
can_run_rootless() {
	[ "$(stat -fc %T /sys/fs/cgroup 2>/dev/null)" = cgroup2fs ] || return 1
	if [ "$(id -u)" = 0 ]; then
		[ -d /run/systemd/system ]
	else
		[ -d "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}" ]
	fi
}

# stage copies what the story needs to where any user can read it.
stage() {
	staged=$(mktemp -d /var/tmp/vfolder-demo.XXXXXX)
	trap 'rm -rf "$staged"' EXIT
	chmod 755 "$staged"
	install -m 755 "$VFOLDER_BIN/vfolder" "$VFOLDER_BIN/vfolderd" "$here/s3get" "$self" "$staged/"
}

prepare() {
	local made='' rc=0 repo
	repo=$(dirname "$here")
	step "What this machine needs"
	if [ -z "$bed" ] && ! can_run_rootless; then
		echo "This host cannot run rootless containers as it is (cgroup v2 and a login session are needed):"
		echo "the story is played in private namespaces, which leave nothing behind."
		bed=1
	fi
	if [ "$(id -u)" = 0 ]; then user=${user:-vfolder-demo}; else user=$(id -un); fi
	if [ -n "$bed" ]; then
		"$here/prerequisites.sh" $yes --no-system
	elif ! id "$user" >/dev/null 2>&1; then
		echo "as root: making the unprivileged user $user, who is removed at the end"
		"$here/prerequisites.sh" $yes --no-system # useradd comes first: it adds sub-ids
		useradd --create-home --shell /bin/bash "$user"
		made=1
		"$here/prerequisites.sh" $yes --user "$user"
	else
		"$here/prerequisites.sh" $yes --user "$user"
	fi
	step "Build"
	export VFOLDER_BIN=$repo/.build/bin
	make -C "$repo" build

	if [ -n "$bed" ]; then
		stage
		local root=()
		[ "$(id -u)" = 0 ] || root=(sudo --preserve-env=DEMO_START)
		"${root[@]}" "$here/bed-a.sh" -u "$user" "$staged/demo.sh" --story ${keep:+--keep} </dev/null || rc=$?
	elif [ "$(id -u)" = 0 ]; then
		stage
		in_session "$user" "$staged/demo.sh" --story ${keep:+--keep} || rc=$?
		if [ -n "$made" ] && [ -z "$keep" ]; then remove_user "$user"; fi
	else
		user_bus
		"$self" --story ${keep:+--keep} </dev/null || rc=$?
	fi
	if [ $rc != 0 ]; then
		printf '\nThe demo FAILED after %d s.\n' $(($(date +%s) - start))
		exit $rc
	fi
	printf '\nThe demo PASSED in %d s.\n' $(($(date +%s) - start))
}

# in_session runs a command in a login session of its own for a user, as if the
# user had logged in: with a runtime directory and a user manager.
in_session() {
	local who=$1
	shift
	systemd-run --quiet --pipe --wait --collect --service-type=exec -p "User=$who" -p PAMName=login -p KillMode=mixed \
		-p WorkingDirectory="$(getent passwd "$who" | cut -d: -f6)" -E DEMO_START="$start" \
		-E PATH=/usr/local/bin:/usr/bin:/bin -- "$@" </dev/null
}

remove_user() {
	local i
	loginctl terminate-user "$1" 2>/dev/null || :
	for i in $(seq 100); do
		pgrep -u "$1" >/dev/null || break
		sleep .1
	done
	userdel --remove "$1" 2>/dev/null || echo "the user $1 is still busy; remove it later with: userdel --remove $1"
}

# user_bus starts the bus of the user's manager where it was installed after
# the login: Podman asks the manager for cgroups over it.
user_bus() {
	export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
	if [ -S "$XDG_RUNTIME_DIR/systemd/private" ] && [ ! -S "$XDG_RUNTIME_DIR/bus" ]; then
		systemctl --user daemon-reload && systemctl --user start dbus.socket || :
	fi
	if [ -S "$XDG_RUNTIME_DIR/bus" ]; then export DBUS_SESSION_BUS_ADDRESS=unix:path=$XDG_RUNTIME_DIR/bus; fi
}

# ---------------------------------------------------------------------- story

# run prints a command as a person would type it, to descriptor 3 so that its
# output can be sent elsewhere, then does it.
run() {
	local word line=''
	for word in "$@"; do
		[ "$word" != "$here/s3get" ] || word=scripts/s3get
		[[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] || word=${word@Q}
		line+=" $word"
	done
	printf '$%s\n' "$line" >&3
	"$@"
}

# field prints a field (a.b) of JSON on standard input.
field() {
	python3 -c 'import json, sys
v = json.load(sys.stdin)
for k in sys.argv[1].split("."): v = v[k]
print(v)' "$1"
}

# expect compares what came out with what should have.
expect() {
	if [ "$2" != "$3" ]; then
		printf 'expected: %s\ngot:      %s\n' "$3" "$2"
		fail "$1"
	fi
	pass "$1"
}

# containers prints the ids of the containers of a session, as Podman knows them.
containers() { podman ps --all --quiet --filter "name=^$1\$"; }

story_end() {
	local rc=$?
	trap - EXIT
	if [ $rc != 0 ] && [ -n "${VFOLDER_DAEMON_STATE_DIR:-}" ]; then
		printf '\nThe end of the daemon'\''s log:\n'
		vfolder daemon logs 2>&1 | tail -n 40 || :
	fi
	if [ -n "$keep" ]; then
		printf '\nKept as it is. To use it: export VFOLDER_CONFIG=%q VFOLDER_DAEMON_STATE_DIR=%q VFOLDER_DAEMON_RUN_DIR=%q VFOLDER_STORE_CREDENTIALS_FILE=%q\n' \
			"$VFOLDER_CONFIG" "$VFOLDER_DAEMON_STATE_DIR" "$VFOLDER_DAEMON_RUN_DIR" "$VFOLDER_STORE_CREDENTIALS_FILE"
		exit $rc
	fi
	if [ $rc != 0 ]; then
		local s
		for s in demo1 demo2; do vfolder session delete --no-wait $s >/dev/null 2>&1 || :; done
		if ! vfolder daemon stop --no-wait >/dev/null 2>&1 && [ -n "$daemon" ]; then
			kill -KILL "$daemon" 2>/dev/null || :
			fusermount3 -uz "$VFOLDER_DAEMON_RUN_DIR/mnt" 2>/dev/null || :
		fi
	fi
	rm -rf "$scratch"
	exit $rc
}

play() {
	daemon=''
	local text='file inside user2-vfolder' s status bucket prefix image=localhost/vfolder-session:latest
	[ "$(id -u)" != 0 ] || fail "the story is an unprivileged user's"
	PATH=${VFOLDER_BIN:-$here}:$PATH
	user_bus
	for s in demo1 demo2; do
		[ -z "$(containers $s)" ] || fail "there is a session $s already; delete it with: vfolder session delete $s"
	done
	scratch=$(mktemp -d /var/tmp/vfolder-story.XXXXXX)
	: >"$scratch/config.toml"
	export VFOLDER_CONFIG=$scratch/config.toml VFOLDER_DAEMON_STATE_DIR=$scratch/state \
		VFOLDER_DAEMON_RUN_DIR=$XDG_RUNTIME_DIR/vfolder-demo VFOLDER_STORE_CREDENTIALS_FILE=$scratch/state/credentials.toml
	trap story_end EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM

	step "The storage daemon, with its own object store"
	run vfolder daemon start
	for _ in $(seq 100); do
		status=$(vfolder daemon status --format json)
		[ "$(field store.reachable <<<"$status")" != True ] || break
		sleep .1
	done
	run vfolder daemon status
	daemon=$(field pid <<<"$status")
	expect "the folders' mount is live" "$(field mounted <<<"$status")" True
	expect "the object store answers" "$(field store.reachable <<<"$status")" True

	step "A session image"
	if vfolder image list -q | grep -qx "$image"; then
		echo "$image is at hand"
	else
		run vfolder image build -q
	fi
	run vfolder image list

	step "Two folders"
	run vfolder folder create user1-ml-test
	run vfolder folder create user2-vfolder
	run vfolder folder list
	expect "both folders are there" "$(vfolder folder list -q | sort | xargs)" "user1-ml-test user2-vfolder"

	step "A session with both"
	run vfolder session create --name demo1 --mount user1-ml-test --mount user2-vfolder
	run vfolder session exec demo1 -- ls /home/work
	expect "the home shows both folders" "$(vfolder session exec demo1 -- ls /home/work | xargs)" "user1-ml-test user2-vfolder"
	expect "the session's user is work" "$(vfolder session exec demo1 -- id -un)" work
	expect "the folder is a FUSE mount in the session" "$(vfolder session exec demo1 -- stat -f -c %T /home/work/user2-vfolder)" fuseblk
	expect "it is a running container of this user's Podman" "$(containers demo1 | wc -l)" 1

	step "A file in a folder, and one in the home itself"
	run vfolder session exec demo1 -- sh -c "printf %s '$text' > /home/work/user2-vfolder/test_file"
	run vfolder session exec demo1 -- sh -c 'echo "file in the home" > /home/work/home_file'
	expect "the home has the file" "$(vfolder session exec demo1 -- cat /home/work/home_file)" "file in the home"

	step "Delete the session: waits until the folder is in the bucket"
	run vfolder session delete demo1
	expect "the session is gone" "$(vfolder session list -q | grep -x demo1 || :)" ""
	expect "the container is gone" "$(containers demo1)" ""

	step "The file outlives the session: with vfolder, and with a plain S3 client"
	run vfolder ls user2-vfolder:
	expect "vfolder lists the file" "$(vfolder ls -q user2-vfolder:)" test_file
	bucket=$(field store.bucket <<<"$status")
	prefix=$(vfolder folder show user2-vfolder --format json | field prefix)
	AWS_ENDPOINT_URL=http://$(field store.endpoint <<<"$status")
	AWS_ACCESS_KEY_ID=$(sed -n 's/^access_key = "\(.*\)"/\1/p' "$VFOLDER_STORE_CREDENTIALS_FILE")
	AWS_SECRET_ACCESS_KEY=$(sed -n 's/^secret_key = "\(.*\)"/\1/p' "$VFOLDER_STORE_CREDENTIALS_FILE")
	export AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
	run "$here/s3get" "$bucket/$prefix"
	"$here/s3get" "$bucket/$prefix" | grep -qx "${prefix}test_file" || fail "the S3 client lists the file"
	pass "the S3 client lists the file"
	run "$here/s3get" "$bucket/${prefix}test_file" | tee "$scratch/by-s3"
	echo
	run vfolder cat user2-vfolder:test_file | tee "$scratch/by-vfolder"
	echo
	expect "the S3 client reads what was written" "$(cat "$scratch/by-s3")" "$text"
	cmp "$scratch/by-s3" "$scratch/by-vfolder" || fail "vfolder and the S3 client read the same bytes"
	pass "vfolder and the S3 client read the same bytes"

	step "A second session: the folder's file is there, the home's file is gone"
	run vfolder session create --name demo2 --mount user1-ml-test --mount user2-vfolder
	run vfolder session exec demo2 -- ls -R /home/work
	expect "the folder's file is there" "$(vfolder session exec demo2 -- cat /home/work/user2-vfolder/test_file)" "$text"
	if vfolder session exec demo2 -- test -e /home/work/home_file; then fail "the home's file is gone"; fi
	pass "the home's file is gone"

	[ -z "$keep" ] || return 0
	step "Clean up"
	run vfolder session delete demo2
	run vfolder folder delete --yes user1-ml-test user2-vfolder
	run vfolder daemon stop
	if grep -q " $VFOLDER_DAEMON_RUN_DIR/" /proc/mounts; then fail "the mount is gone"; fi
	pass "the mount is gone"
}

exec 3>&1
if [ -n "$story" ]; then play; else prepare; fi
