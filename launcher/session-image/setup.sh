#!/bin/sh
# Turns a fresh Debian root file system into a session image. $1 is its path.
set -eu
root=$1

# The user of sessions: id 1000, which is the host's user outside. No password,
# no sudo.
chroot "$root" useradd --create-home --home-dir /home/work --uid 1000 --user-group --shell /bin/bash work

# Login shells reset PATH; what pip installs for the user has to be on it.
cat >"$root/etc/profile.d/vfolder.sh" <<'END'
case ":$PATH:" in
*":$HOME/.local/bin:"*) ;;
*) PATH=$HOME/.local/bin:$PATH ;;
esac
END

# A container that is thrown away needs no virtual environment: with this mark
# gone, plain "pip install" goes to ~/.local.
rm -f "$root"/usr/lib/python3.*/EXTERNALLY-MANAGED

# Every session has an identity of its own. mmdebstrap cleans up the rest; its
# configuration for apt still lies in /tmp.
: >"$root/etc/machine-id"
