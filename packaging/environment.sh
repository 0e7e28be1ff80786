# shellcheck shell=bash disable=SC2034 # the variables are for the scripts that read this
# Where things are; read by every script of the project with `source`, never run by itself.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kpulse

# A freshly installed rustup is not in the PATH of a shell that was open before it; sbin holds nft, mkfs and the like.
# $CACHE/bin holds tools that are unpacked there rather than installed, see setup.sh.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin:$CACHE/bin
export PATH

have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }
can_sudo() { have sudo && sudo -n true 2>/dev/null; }

# Runs a command as root if this machine lets us without asking; the caller has checked that it does.
as_root() { if is_root; then "$@"; else sudo -n "$@"; fi; }
