#!/usr/bin/env bash
# Proves that a fresh Debian 12 with git, make and cargo needs nothing else: installs a minimal Debian into a folder,
# clones this repository's HEAD into it, and runs a make target there.
#   fresh-machine.sh [--work-tree] [COMMAND]
# --work-tree takes the files as they are here, committed or not. COMMAND is `make run` for 60 seconds if none is given.
# Needs root and debootstrap. The minimal Debian is kept packed in the cache; the folder itself is made anew each time.
set -euo pipefail
# shellcheck source=../packaging/environment.sh
source "$(dirname "$0")/../packaging/environment.sh"
cd "$ROOT"

skip() { echo "SKIP fresh machine: $*"; exit 77; }

is_root || skip "needs root"
have debootstrap || skip "debootstrap is missing (apt-get install debootstrap)"
have cargo || skip "needs this machine's cargo, to lend it"

# In a mount namespace of its own: however this ends, the mounts end with it.
if [ -z "${KPULSE_FRESH_NAMESPACE:-}" ]; then
	exec unshare --mount --propagation private env KPULSE_FRESH_NAMESPACE=1 "$0" "$@"
fi

work_tree=''
if [ "${1:-}" = --work-tree ]; then
	work_tree=1
	shift
fi
command=${*:-env KPULSE_RUN_SECONDS=60 make run}
base=$CACHE/fresh/bookworm.tar
root=$(mktemp -d)
# Apt reads its lists as a user of its own.
chmod 755 "$root"
bound=()

# The mounts go first: nothing of this machine may still be bound when the folder is removed.
clean_up() {
	local index
	cd /
	for ((index = ${#bound[@]} - 1; index >= 0; index--)); do umount --recursive --lazy "${bound[$index]}" || return; done
	if awk -v root="$root/" 'index($2, root) == 1 { found = 1 } END { exit found }' /proc/mounts; then rm -rf --one-file-system "$root"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# bind SOURCE [TARGET] [ro]
bind() {
	mkdir -p "$root${2:-$1}"
	mount --rbind "$1" "$root${2:-$1}"
	mount --make-rslave "$root${2:-$1}"
	bound+=("$root${2:-$1}")
	[ "${3:-}" != ro ] || mount -o remount,bind,ro "$root${2:-$1}"
}

mirror=${KPULSE_DEBIAN_MIRROR:-$({ sed -nE 's/^URIs: *//p; s/^deb +(\[[^]]*\] *)?([^ ]+) .*/\2/p' \
	/etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } | tr ' ' '\n' | sed 's:/*$::' | grep -m 1 '/debian$')} ||
	skip "no Debian archive among this machine's apt sources; KPULSE_DEBIAN_MIRROR can name one"

if [ ! -e "$base" ]; then
	echo "fresh machine: installing a minimal Debian 12"
	mkdir -p "$(dirname "$base")"
	debootstrap --variant=minbase --include=ca-certificates,git,make bookworm "$root" "$mirror" >"$base.log" 2>&1 ||
		{ tail -n 5 "$base.log"; exit 1; }
	tar -C "$root" -cf "$base.part" .
	mv "$base.part" "$base"
else
	tar -C "$root" -xf "$base"
fi

# How the new machine reaches the network: this machine's names, certificates and apt sources of Debian.
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
{
	echo "deb $mirror bookworm main"
	echo "deb $mirror bookworm-updates main"
	echo "deb ${mirror%/debian}/debian-security bookworm-security main"
} >"$root/etc/apt/sources.list"
apt-config dump | grep -E '^Acquire::(http|https|Check-)' >"$root/etc/apt/apt.conf.d/90network" || true
# A chroot's services must not start on the machine around it.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

bind /proc
bind /sys
bind /dev

# Cargo as rustup would have left it, with what was downloaded before, so that only packages come from the network.
rustup_home=${RUSTUP_HOME:-$HOME/.rustup} cargo_home=${CARGO_HOME:-$HOME/.cargo}
bind "$rustup_home" /root/.rustup ro
mkdir -p "$root/root/.cargo/registry"
cp -a "$cargo_home/bin" "$root/root/.cargo/"
for part in config.toml config registry/cache registry/index; do
	[ ! -e "$cargo_home/$part" ] || cp -a "$cargo_home/$part" "$root/root/.cargo/$part"
done

git clone --quiet --no-hardlinks "$ROOT" "$root/root/kpulse"
if [ -n "$work_tree" ]; then
	git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
		if [ -e "$file" ]; then echo "$file"; else rm -f "$root/root/kpulse/$file"; fi
	done | tar -c --files-from=- | tar -x -C "$root/root/kpulse"
fi

echo "fresh machine: $command"
# The variables of a new login, and what this machine needs to reach crates.io.
env --ignore-environment HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	${SSL_CERT_FILE:+SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt} \
	${HTTPS_PROXY:+HTTPS_PROXY="$HTTPS_PROXY"} ${https_proxy:+https_proxy="$https_proxy"} \
	chroot "$root" bash -c "cd /root/kpulse && $command"
echo "fresh machine: ok"
