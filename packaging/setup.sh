#!/usr/bin/env bash
# Makes a Debian or Ubuntu machine able to build and test kpulse: installs what is missing, once, through apt.
#   setup.sh build    what every build needs; a missing part ends here with the command that installs it
#   setup.sh test     and what the tests need besides; without it the tests concerned are skipped
# What is missing is found by trying, so a compiler from anywhere will do.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

packages=() purposes=()

# missing PACKAGES PURPOSE: notes packages to install, separated by spaces.
missing() {
	local package
	for package in $1; do packages+=("$package"); done
	case ", ${purposes[*]-}, " in *"$2"*) ;; *) purposes+=("$2,") ;; esac
}
need() { have "$1" || missing "$2" "$3"; }
any_file() { compgen -G "$1" >/dev/null; }
# A tool under its own name, or with a version behind it as Debian's versioned packages install it.
any_version() { have "$1" || compgen -c "$1-" | grep -qE "^$1-[0-9]+$"; }

has_libclang() {
	[ -n "${LIBCLANG_PATH:-}" ] && return
	local folder
	for folder in '/usr/lib/llvm-*/lib' '/usr/lib/*-linux-gnu' /usr/lib /usr/lib64 /usr/local/lib; do
		if any_file "$folder/libclang.so*" || any_file "$folder/libclang-[0-9]*.so*"; then return 0; fi
	done
	return 1
}

find_build_needs() {
	[ -n "${BPF_CLANG:-}" ] || any_version clang || missing clang "compile the BPF programs"
	any_version llvm-strip || missing llvm "compile the BPF programs"
	[ -e /usr/include/bpf/bpf_helpers.h ] || missing libbpf-dev "compile the BPF programs"
	has_libclang || missing libclang1 "read their C headers from Rust"
	{ have cc && [ -e /usr/include/stdlib.h ]; } || missing "gcc libc6-dev" "link"
	have c++ || missing g++ "build the client of Kafka"
	need pkg-config pkg-config "build the client of Kafka"
	[ -e /usr/include/openssl/ssl.h ] || missing libssl-dev "build the client of Kafka"
	need curl curl "ask the running binaries"
	if grep -q '^name = "cmake"$' "$ROOT/Cargo.lock"; then need cmake cmake "build C libraries"; fi
}

find_test_needs() {
	any_version clang-format || missing clang-format "check the C code's format"
	need shellcheck shellcheck "check the shell scripts"
	need qemu-system-x86_64 qemu-system-x86 "boot other kernels"
	need busybox busybox-static "boot other kernels"
	need cpio cpio "boot other kernels"
	need xz xz-utils "boot other kernels"
	[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing debian-archive-keyring "boot other kernels"
	need nft nftables "provoke packet drops"
	need ip iproute2 "provoke packet drops"
	need mkfs.ext4 e2fsprogs "provoke disk waits"
	need mkfs.xfs xfsprogs "provoke disk waits"
	need setpriv util-linux "run without privileges"
	need zstd zstd "read compressed metrics"
	have javac || missing openjdk-17-jdk-headless "run Kafka and Elasticsearch"
	need mvn maven "run Kafka and Elasticsearch"
	python3 -c 'import ensurepip' 2>/dev/null || missing python3-venv "run the example consumer"
	need g++ g++ "profile C++ programs"
	need chromium chromium "look at pages as a browser does"
}

# apt_install PACKAGE...: quietly; what apt said is shown only when it failed. No package here starts a service.
apt_install() {
	local log status=0
	log=$(mktemp)
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 sh -c '
		apt-get -qq -o DPkg::Lock::Timeout=300 update
		exec apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$@"' - "$@" \
		</dev/null >"$log" 2>&1 || status=$?
	[ $status = 0 ] || tail -n 5 "$log" | sed 's/^/    /' >&2
	rm -f "$log"
	return $status
}

# unpack PACKAGE PURPOSE PROGRAM...: programs of a package whose installation would start a server, so it is unpacked
# into the cache and not installed.
unpack() {
	local package=$1 purpose=$2 program folder status=0
	shift 2
	for program in "$@"; do have "$program" || status=1; done
	[ $status != 0 ] || return 0
	status=0
	folder=$(mktemp -d)
	echo "kpulse: unpacking $* ($purpose) into $CACHE/bin"
	(
		cd "$folder"
		apt-get -qq -o APT::Sandbox::User=root download "$package"
		dpkg-deb -x "$package"_*.deb .
		for program in "$@"; do install -D -m 755 "usr/bin/$program" "$CACHE/bin/$program"; done
	) >"$folder/log" 2>&1 || status=$?
	[ $status = 0 ] || echo "kpulse: $* is not to be had here ($(tail -n 1 "$folder/log")); tests that need it are skipped"
	rm -rf "$folder"
}

unpack_tools() {
	unpack prometheus "judges and scrapes the metrics" promtool prometheus
	unpack prometheus-node-exporter "runs beside the exporter" prometheus-node-exporter
}

check_cargo() {
	local wanted found
	wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
	found=$(cargo --version 2>/dev/null | awk '{ print $2 }') || true
	if [ -n "$found" ] && [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]; then return; fi
	echo "kpulse: ${found:+cargo $found is too old: }cargo $wanted or newer is needed. This gets it, then try again:" >&2
	echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default" >&2
	exit 1
}

# provide MUST: installs what was noted; when that cannot be done and MUST is 1, ends with the command that would.
provide() {
	[ ${#packages[@]} -gt 0 ] || return 0
	local must=$1 purpose=${purposes[*]} list=${packages[*]}
	purpose=${purpose%,}
	if have apt-get && { is_root || can_sudo; }; then
		echo "kpulse: installing $list through apt, to $purpose"
		if apt_install "${packages[@]}"; then return; fi
	fi
	if [ "$must" = 1 ]; then
		echo "kpulse: to $purpose, these are missing. Run this, then try again:" >&2
	else
		echo "kpulse: to $purpose, these are missing and the tests concerned are skipped. This installs them:" >&2
	fi
	if have apt-get; then
		echo "  sudo apt-get update && sudo apt-get install -y $list" >&2
	else
		echo "  your package manager's install of (Debian's names): $list" >&2
	fi
	[ "$must" = 0 ] || exit 1
}

what=${1:-build}
check_cargo
find_build_needs
provide 1
if [ "$what" = test ]; then
	packages=() purposes=()
	find_test_needs
	provide 0
	if have apt-get; then unpack_tools; else have promtool || echo "kpulse: promtool is missing; tests that need it are skipped"; fi
fi
