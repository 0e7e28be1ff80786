#!/usr/bin/env bash
# A Python with the packages of the example consumer, in a folder of the cache.
#   python.sh FILE [ARGUMENT]...
#   python.sh install
set -euo pipefail
source "$(dirname "$0")/lib.sh"

REQUIREMENTS=$ROOT/event-gateway/examples/requirements.txt
INSTALLED=$SERVICES/python-$(sha256sum "$REQUIREMENTS" | cut -c 1-12)

if [ "$1" = install ]; then
	have python3 || die "python3 is missing"
	mkdir -p "$SERVICES"
	exec 9>"$INSTALLED.lock"
	flock 9
	[ ! -e "$INSTALLED/installed" ] || exit 0
	python3 -m venv --clear "$INSTALLED" >&2
	"$INSTALLED/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$REQUIREMENTS" >&2
	touch "$INSTALLED/installed"
	exit
fi
exec "$INSTALLED/bin/python" "$@"
