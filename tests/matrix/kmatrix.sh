#!/usr/bin/env bash
# Runs a command under several Linux kernels in qemu, each in a throw-away guest of a few files.
#
#   kmatrix.sh fetch [--kernels LIST]
#   kmatrix.sh run --cmd COMMAND [--bin FILE]... [options]
#
#   --kernels "5.10 6.1"   series, or `newest`; with -v1 behind it, on cgroup v1 alone (5.10 6.1 6.12 newest)
#   --cmd COMMAND          shell command that the guest runs as root; /bin is its PATH
#   --bin FILE             program to put into /bin with the shared libraries it needs
#   --add SRC:DST          file or folder to put at DST
#   --env NAME=VALUE       environment variable of the command
#   --modules "a b"        kernel modules to load first, with what they depend on
#   --spare "a b"          kernel modules to put into /modules for the command to load
#   --disk virtio|nvme|none  an empty 64 MiB disk                   (virtio)
#   --nic vmxnet3|none     a network card that leads nowhere        (none)
#   --machine pc|q35       q35 has PCI Express, and a root port     (pc)
#   --smp N, --mem MIB     size of a guest                          (2, 768)
#   --timeout SECONDS      of one guest                             (900)
#   --stall SECONDS        without a word on its console            (180)
#   --jobs N               guests at a time                         (1)
#   --log FOLDER           keeps each guest's console as FOLDER/SERIES.log
#
# Prints a line for each kernel: MATRIX <series> rc=<n> release=<uname -r> boot=<s> total=<s>
# where rc is the command's, 97 = the guest panicked, stalled or ran out of time (tried again first), 98 = no such kernel was to be had.
# Exits 0 if every rc is 0, 77 if no guest can be started here (it says why), 1 otherwise, 2 for wrong usage.
#
# The kernels are Debian's own packages, from the mirror that this machine's apt uses or from $KPULSE_DEBIAN_MIRROR,
# checked against Debian's keys, and kept in $KPULSE_MATRIX_CACHE. Nothing is installed on this machine.
set -euo pipefail
# shellcheck source=../../packaging/environment.sh
source "$(dirname "$0")/../../packaging/environment.sh"

cache=${KPULSE_MATRIX_CACHE:-$CACHE/matrix}
kernels="5.10 6.1 6.12 newest" command='' modules='' spare='' disk=virtio nic=none machine=pc smp=2 mem=768 limit=900 stall=180 jobs=1 log_folder=''
binaries=() additions=() variables=()
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
work='' guests=()

usage() { echo "kmatrix: $*" >&2; exit 2; }
skip() { echo "SKIP matrix: $*"; exit 77; }

parse() {
	[ $# -gt 0 ] || usage "say fetch or run; the head of this file explains both"
	verb=$1
	shift
	while [ $# -gt 0 ]; do
		[ $# -ge 2 ] || usage "$1 needs a value"
		case $1 in
		--kernels) kernels=$2 ;;
		--cmd) command=$2 ;;
		--bin) binaries+=("$2") ;;
		--add) additions+=("$2") ;;
		--env) variables+=("$2") ;;
		--modules) modules=$2 ;;
		--spare) spare=$2 ;;
		--disk) disk=$2 ;;
		--nic) nic=$2 ;;
		--machine) machine=$2 ;;
		--smp) smp=$2 ;;
		--mem) mem=$2 ;;
		--timeout) limit=$2 ;;
		--stall) stall=$2 ;;
		--jobs) jobs=$2 ;;
		--log) log_folder=$2 ;;
		*) usage "unknown option $1" ;;
		esac
		shift 2
	done
}

require_tools() {
	local tool
	[ "$(uname -m)" = x86_64 ] || skip "the guests are x86_64 and this machine is $(uname -m)"
	for tool in "$@"; do have "$tool" || skip "$tool is missing (packaging/setup.sh test installs it)"; done
}

clean_up() {
	local pid
	for pid in "${guests[@]}"; do kill "$pid" 2>/dev/null || true; done
	wait
	[ -z "$work" ] || rm -rf "$work"
}

# ---- Kernels: downloaded with a private apt, so that this machine's package state is neither used nor changed.

# mirror SUFFIX: the first archive among this machine's apt sources whose address ends in SUFFIX.
mirror() {
	{
		sed -nE 's/^URIs: *//p; s/^deb +(\[[^]]*\] *)?([^ ]+) .*/\2/p' \
			/etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true
	} | tr ' ' '\n' | sed 's:/*$::' | awk -v suffix="$1" '$0 ~ suffix "$" { print; exit }'
}

prepare_apt() {
	local folder=$cache/apt main security
	require_tools apt-get apt-cache apt-config dpkg-deb
	main=${KPULSE_DEBIAN_MIRROR:-$(mirror /debian)}
	security=$(mirror /debian-security)
	[ -n "$main" ] || skip "no Debian archive among this machine's apt sources; KPULSE_DEBIAN_MIRROR can name one"
	[ -e "$keyring" ] || skip "Debian's keys are missing (package debian-archive-keyring)"
	mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,parts}
	touch "$folder/state/status"
	{
		echo "deb [signed-by=$keyring] ${security:-$main-security} bullseye-security main"
		for suite in bookworm trixie trixie-backports; do echo "deb [signed-by=$keyring] $main $suite main"; done
	} >"$folder/sources.list"
	{
		# How this machine reaches the network: proxies, certificates, and leave to use an archive's snapshot.
		apt-config dump | grep -E '^Acquire::(http|https|Check-)' || true
		cat <<-CONF
			Dir::State "$folder/state";
			Dir::State::status "$folder/state/status";
			Dir::Cache "$folder/cache";
			Dir::Etc::sourcelist "$folder/sources.list";
			Dir::Etc::sourceparts "$folder/parts";
			Dir::Etc::main "$folder/none";
			Dir::Etc::parts "$folder/parts";
			APT::Architecture "amd64";
			APT::Architectures "amd64";
			APT::Sandbox::User "";
			Acquire::Languages "none";
			Acquire::GzipIndexes "true";
			Acquire::Retries "3";
		CONF
	} >"$folder/apt.conf"
	export APT_CONFIG=$folder/apt.conf
	# Lists of a day ago still name packages that are there.
	if [ ! -e "$folder/updated" ] || [ -n "$(find "$folder/updated" -mmin +1440)" ]; then
		if apt-get -qq update >&2; then touch "$folder/updated"; fi
	fi
	[ -n "$(apt-cache pkgnames linux-image-)" ] || skip "no kernel packages are to be had: the Debian archive cannot be reached"
}

# flavour SERIES: how the names of its packages end. Cloud kernels are a third as large, but have no memory controllers.
flavour() {
	case $1 in
	newest) echo '[0-9]-amd64$' ;;
	*) echo '[0-9]-cloud-amd64$' ;;
	esac
}

# candidates SERIES: package names, newest first. An index may name a package that the archive has already dropped.
candidates() {
	local version="${1//./\\.}\\.[0-9.]*" other='unsigned|dbg|deb11'
	if [ "$1" = newest ]; then
		version='[0-9][0-9.]*'
		# Without the suite that has it, the newest is none, rather than one of the releases' own series.
		other+='|^linux-image-(5\.10|6\.1|6\.12)[.-]'
	fi
	apt-cache pkgnames linux-image- | grep -E "^linux-image-${version}([-+~][^ ]*)?-(cloud-)?amd64\$" |
		grep -E "$(flavour "$1")" | grep -vE "$other" | sort -rV | head -n 4
}

# download PACKAGE FOLDER: also splits up: since 7.x the image is a shell around linux-binary and linux-modules.
download() {
	local parts
	parts=$(apt-cache depends --no-recommends --no-suggests "$1" |
		sed -nE 's/^ *\|?Depends: (linux-(binary|modules)-.*)$/\1/p')
	rm -rf "$2"
	mkdir -p "$2"
	# shellcheck disable=SC2086 # the parts are a list of package names
	(cd "$2" && apt-get -qq download ${parts:-$1} >&2)
}

# fetch SERIES: fills $cache/kernels/SERIES with vmlinuz, modules/ and release, unless it is there.
fetch() {
	local series=$1 folder=$cache/kernels/$1 package got='' deb tree
	! grep -qsE "$(flavour "$series")" "$folder/complete" || return 0
	[ -n "${APT_CONFIG:-}" ] || prepare_apt
	rm -rf "$folder"
	mkdir -p "$folder/tree"
	for package in $(candidates "$series"); do
		if download "$package" "$folder/packages"; then
			got=$package
			break
		fi
	done
	if [ -z "$got" ]; then
		rm -rf "$folder"
		echo "kmatrix: no kernel package is to be had for $series" >&2
		return 1
	fi
	for deb in "$folder"/packages/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$folder/tree" --exclude='./usr/share'
	done
	tree=$(compgen -G "$folder/tree/lib/modules/*" || compgen -G "$folder/tree/usr/lib/modules/*")
	basename "$tree" >"$folder/release"
	cp "$(compgen -G "$folder/tree/boot/vmlinuz-*" || echo "$tree/vmlinuz")" "$folder/vmlinuz"
	mv "$tree" "$folder/modules"
	rm -rf "$folder/packages" "$folder/tree"
	echo "$got" >"$folder/complete"
}

# ---- Guests: a kernel, and a RAM disk of busybox, the binaries and an init script.

module_file() { find "$1/modules" -name "${2//[-_]/[-_]}.ko*" -print -quit; }
decompress() {
	case $1 in
	*.xz) xz -dc "$1" ;;
	*.zst) zstd -dcq "$1" ;;
	*) cat "$1" ;;
	esac
}

# order_modules KERNEL MODULE: appends to `ordered` what has to be loaded, dependencies first; built-in ones have no file.
order_modules() {
	local file dependency
	case " $ordered " in *" $2 "*) return ;; esac
	file=$(module_file "$1" "$2")
	[ -n "$file" ] || return 0
	for dependency in $(decompress "$file" | tr '\0' '\n' | sed -n 's/^depends=//p' | tr , ' '); do
		order_modules "$1" "$dependency"
	done
	ordered+=" $2"
}

# add_binary ROOT FILE: with its shared libraries; debug sections stay behind, since the RAM disk is the guest's memory.
add_binary() {
	local target library
	target=$1/bin/$(basename "$2")
	install -D -m 755 "$2" "$target"
	if have strip; then strip --strip-debug "$target" 2>/dev/null || true; fi
	for library in $({ ldd "$2" 2>/dev/null || true; } | grep -oE '/[^ ]+' | sort -u); do
		[ -e "$1$library" ] || install -D -m 755 "$(readlink -f "$library")" "$1$library"
	done
}

# build_initrd KERNEL OUTPUT
build_initrd() {
	local root=$2.root wanted=$modules ordered='' entry module file
	mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,etc,modules,root,var/lib}
	cp "$(command -v busybox)" "$root/bin/busybox"
	: >"$root/modules/order"
	for entry in "${binaries[@]}"; do add_binary "$root" "$entry"; done
	for entry in "${additions[@]}"; do
		mkdir -p "$root$(dirname "${entry##*:}")"
		cp -aT "${entry%%:*}" "$root${entry##*:}"
	done
	case $disk in
	virtio) wanted+=" virtio_pci virtio_blk" ;;
	nvme) wanted+=" nvme" ;;
	esac
	[ "$nic" = none ] || wanted+=" $nic"
	for module in $wanted; do order_modules "$1" "$module"; done
	for module in $ordered; do decompress "$(module_file "$1" "$module")" >"$root/modules/$module.ko"; done
	for module in $spare; do
		file=$(module_file "$1" "$module")
		[ -z "$file" ] || decompress "$file" >"$root/modules/$module.ko"
	done
	# shellcheck disable=SC2086 # one line for each module of the list
	[ -z "$ordered" ] || printf '%s\n' $ordered >>"$root/modules/order"
	{
		for entry in "${variables[@]}"; do printf 'export %q\n' "$entry"; done
		printf '%s\n' "$command"
	} >"$root/command"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 'nobody:x:65534:65534:nobody:/:/bin/false' >>"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	echo '127.0.0.1 localhost' >"$root/etc/hosts"
	install -m 755 "$ROOT/tests/matrix/init.sh" "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >"$2"
	rm -rf "$root"
}

# watch_guest PID LOG: waits for a guest's end, and ends it when it stalls, takes too long, or this script is ended.
watch_guest() {
	local guest=$1 started=$SECONDS heard=$SECONDS size=0 now
	# shellcheck disable=SC2064 # the pid of this guest
	trap "kill $guest; wait $guest; exit 143" TERM
	while kill -0 "$guest" 2>/dev/null; do
		sleep 0.5
		now=$(stat -c %s "$2")
		[ "$now" = "$size" ] || heard=$SECONDS
		size=$now
		if [ $((SECONDS - heard)) -ge "$stall" ] || [ $((SECONDS - started)) -ge "$limit" ]; then
			echo "GUEST-NOTE ended after $((SECONDS - started)) s, the last $((SECONDS - heard)) of them silent" >>"$2"
			kill -KILL "$guest"
			break
		fi
	done
	wait "$guest" 2>/dev/null || true
	trap - TERM
}

# boot KERNEL INITRD LOG SERIES: one run of a guest.
boot() {
	local layout=''
	# What systemd calls it; init.sh does as told.
	case $4 in *-v1) layout=systemd.unified_cgroup_hierarchy=0 ;; esac
	# Without cmpxchg16b, after which this qemu leaves garbage in EFLAGS: kernels that use it in the slab allocator
	# (6.12) double-fault within seconds.
	local arguments=(
		-machine "$machine" -cpu 'max,-cx16' -m "$mem" -smp "$smp" -kernel "$1/vmlinuz" -initrd "$2" -nodefaults -no-reboot
		-display none -monitor none -serial stdio
		-append "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off tsc=reliable $layout"
	)
	case ${KPULSE_MATRIX_ACCEL:-tcg} in
	kvm) arguments+=(-accel kvm) ;;
	# One thread for all virtual CPUs: with several, a CPU can meet a breakpoint of the kernel's text patching that
	# another has already taken away, and panics. Guests run side by side, so no core is idle for it.
	*) arguments+=(-accel 'tcg,thread=single') ;;
	esac
	case $disk in
	virtio) arguments+=(-device 'virtio-blk-pci,drive=disk') ;;
	nvme) arguments+=(-device 'nvme,serial=kpulse,drive=disk') ;;
	esac
	[ "$machine" != q35 ] || arguments+=(-device pcie-root-port)
	[ "$nic" = none ] || arguments+=(-netdev 'hubport,id=nowhere,hubid=0' -device "$nic,netdev=nowhere")
	if [ "$disk" != none ]; then
		truncate -s 64M "$2.disk"
		arguments+=(-drive "if=none,id=disk,format=raw,cache=writeback,file=$2.disk")
	fi
	qemu-system-x86_64 "${arguments[@]}" </dev/null >"$3" 2>&1 &
	watch_guest $! "$3"
	rm -f "$2.disk"
}

# run_guest SERIES: prints its MATRIX line and returns the command's exit code.
run_guest() {
	local series=$1 kernel=$cache/kernels/${1%-v1} initrd=$work/$1.initrd log=${log_folder:-$work}/$1.log code='' started attempt
	[ -e "$kernel/complete" ] || { echo "MATRIX $series rc=98: no kernel"; return 98; }
	build_initrd "$kernel" "$initrd"
	# A guest that panics or stalls may be the emulation's fault, which does not happen twice running; a kernel's does.
	for attempt in 1 2; do
		started=$SECONDS
		boot "$kernel" "$initrd" "$log" "$series"
		sed -i 's/\r//g' "$log"
		code=$(sed -n 's/^GUEST-EXIT \([0-9]*\).*/\1/p' "$log" | tail -n 1)
		if [ -n "$code" ] || [ $attempt = 2 ]; then break; fi
		echo "MATRIX $series did not finish, trying once more. Its last words:"
		tail -n 4 "$log" | sed 's/^/    /'
		mv "$log" "${log%.log}.first.log"
	done
	rm -f "$initrd"
	code=${code:-97}
	echo "MATRIX $series rc=$code $(sed -n 's/^GUEST-BOOT //p' "$log") total=$((SECONDS - started))s"
	grep '^GUEST-NOTE' "$log" || true
	if [ "$code" != 0 ]; then
		echo "---- console of $series, last lines"
		tail -n 150 "$log" | sed 's/^/    /'
		echo "----"
	fi
	return "$code"
}

run() {
	local series failed=0 pid
	[ -n "$command" ] || usage "run needs --cmd"
	for series in "${binaries[@]}"; do [ -x "$series" ] || usage "no such program: $series"; done
	require_tools qemu-system-x86_64 busybox cpio xz gzip
	work=$(mktemp -d)
	trap clean_up EXIT
	trap 'exit 130' INT TERM
	[ -z "$log_folder" ] || mkdir -p "$log_folder"
	for series in $kernels; do fetch "${series%-v1}" || true; done
	for series in $kernels; do
		while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
		run_guest "$series" &
		guests+=($!)
	done
	for pid in "${guests[@]}"; do wait "$pid" || failed=1; done
	guests=()
	return $failed
}

parse "$@"
mkdir -p "$cache"
case $verb in
fetch)
	for series in $kernels; do
		fetch "$series"
		echo "$series $(cat "$cache/kernels/$series/release")"
	done
	;;
run) run ;;
*) usage "unknown verb $verb" ;;
esac
