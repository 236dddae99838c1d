#!/bin/bash
# find-go.sh: prints the path of a go command that is new enough for go.mod;
# exits 1 when there is none (scripts/prerequisites.sh installs one).
set -euo pipefail
repo=$(dirname "$(dirname "$(readlink -f "$0")")")
need=$(awk '$1 == "go" {print $2; exit}' "$repo/go.mod")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vfolder
for go in "$(command -v go || :)" /usr/local/go/bin/go "$cache"/go/bin/go /usr/lib/go-1.*/bin/go; do
	[ -x "$go" ] || continue
	# "local": what is installed, not what go would fetch for itself.
	have=$(cd / && GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null) || continue
	have=${have#go}
	if [ "$(printf '%s\n' "$need" "$have" | sort -V | head -n 1)" = "$need" ]; then
		echo "$go"
		exit 0
	fi
done
exit 1
