#!/usr/bin/env bash
# Boots every supported kernel series and runs the kernel tests and the three binaries in it (guest.sh); one also with
# cgroup v1 alone, for what is read from files.
# Options are those of `kmatrix.sh run`, for example --kernels "5.10 newest"; exit codes too.
set -euo pipefail
# shellcheck source=../../packaging/environment.sh
source "$(dirname "$0")/../../packaging/environment.sh"
cd "$ROOT"

cargo build --quiet --workspace --all-targets
programs=()
for binary in kpulse-exporter kpulse-event-gateway kpulse-profiler; do programs+=(--bin "$TARGET/debug/$binary"); done

# Under their own names instead of cargo's with a hash, so that guest.sh can call them.
while IFS=$'\t' read -r name _ program; do
	case $name in
	kernel | host)
		install -D "$program" "$TARGET/matrix/$name"
		programs+=(--bin "$TARGET/matrix/$name")
		;;
	esac
done < <(packaging/list-tests.sh)

# What the tests make journals on; a guest has only what is put into it.
for tool in mkfs.ext4 mkfs.xfs; do
	if path=$(command -v $tool); then programs+=(--bin "$path"); fi
done

exec tests/matrix/kmatrix.sh run "${programs[@]}" --add tests/matrix/guest.sh:/guest.sh --cmd 'sh /guest.sh' \
	--env KPULSE_MATRIX=1 --modules "sch_tbf loop ext4 xfs mce-inject aer_inject ip_gre" --spare i3000_edac \
	--nic vmxnet3 --machine q35 --jobs 2 --timeout 1500 \
	--kernels "5.10 6.1 6.12 newest 6.1-v1" "$@"
