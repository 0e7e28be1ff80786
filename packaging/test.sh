#!/usr/bin/env bash
# Runs everything that this machine can test and tells what it skipped and why. Logs stay in target/test-logs.
# The last line is the sum: N passed, N failed, N skipped.
set -uo pipefail
source "$(dirname "$0")/environment.sh"
cd "$ROOT" || exit 1

logs=$TARGET/test-logs
passed=0 failed=0 skips=() beside=()

# show_log FILE: the end of it, indented; the whole is in the file.
show_log() {
	tail -n 120 "$1" | sed 's/^/    /'
	echo "    (all of it: ${1#"$ROOT"/})"
}

# check NAME COMMAND...: one check that passes, fails, or skips by exiting with 77 and a last line that says why.
check() {
	local name=$1 log=$logs/${1// /-}.log code=0 started=$SECONDS
	shift
	"$@" >"$log" 2>&1 </dev/null || code=$?
	case $code in
	0)
		passed=$((passed + 1))
		echo "ok      $name ($((SECONDS - started)) s)"
		;;
	77)
		skips+=("$name: $(tail -n 1 "$log" | sed 's/^SKIP //')")
		echo "skipped $name"
		;;
	*)
		failed=$((failed + 1))
		echo "FAILED  $name"
		show_log "$log"
		;;
	esac
	return $code
}

# count_tests LOG PREFIX: adds what a Rust test program's output tells. A test that finds its needs unmet at run time
# counts as passed there; it prints a line `SKIP test: reason`, and counts as skipped here.
count_tests() {
	local ok bad ignored skipped_here=0 line
	read -r ok bad ignored < <(awk '
		/^test result: / { for (i = 2; i <= NF; i++) {
			if ($i == "passed;") ok += $(i - 1)
			if ($i == "failed;") bad += $(i - 1)
			if ($i == "ignored;") ignored += $(i - 1) } }
		END { print ok + 0, bad + 0, ignored + 0 }' "$1")
	while read -r line; do
		skips+=("$2$line")
		skipped_here=$((skipped_here + 1))
	done < <(awk '
		/^---- .* stdout ----$/ { test = $2 }
		/^SKIP / && test != "" { sub(/^SKIP [^ ]*: /, ""); print test ": " $0; test = "" }' "$1")
	while read -r line; do skips+=("$2$line"); done < <(sed -nE 's/^test (.*) \.\.\. ignored(, )?/\1: /p' "$1")
	passed=$((passed + ok - skipped_here))
	failed=$((failed + bad))
	summary="$((ok - skipped_here)) passed, $bad failed, $((skipped_here + ignored)) skipped"
}

# Names of the tests that failed, by the list at the end of a test program's output.
failed_tests() { awk '/^failures:$/ { count = 0 } /^    [A-Za-z0-9_:]+$/ { name[count++] = $1 } END { for (i = 0; i < count; i++) print name[i] }' "$1"; }

# run_again NAME FOLDER PROGRAM ARGUMENT...: gives the failed tests of a program a second chance, and tells of those that
# take it. Their oracles are exact and the machine is not theirs alone: some kernels of sandboxes run no BPF program in
# an interrupt of the sandbox's own agent, so that a packet in twenty is missing now and then.
run_again() {
	local name=$1 folder=$2 log="$logs/${1// /-}" tests
	shift 2
	mapfile -t tests < <(failed_tests "$log.log")
	[ ${#tests[@]} -gt 0 ] || return 1
	(cd "$folder" && CARGO_MANIFEST_DIR=$folder timeout -k 10 600 "$@" --exact "${tests[@]}") >"$log.again.log" 2>&1 </dev/null || return 1
	echo "flaky   $name: passed at the second try: ${tests[*]}"
	failed=$((failed - ${#tests[@]}))
	passed=$((passed + ${#tests[@]}))
	summary+=", of which ${#tests[@]} passed at the second try"
}

# run_program NAME FOLDER PROGRAM ARGUMENT...: one test program, in its package's folder as cargo would.
run_program() {
	local folder=$2 log="$logs/${1// /-}.log"
	shift 2
	(cd "$folder" && CARGO_MANIFEST_DIR=$folder timeout -k 10 1200 "$@") >"$log" 2>&1 </dev/null
}

# judge CODE SECONDS NAME FOLDER PROGRAM ARGUMENT...: tells and counts how a test program went that ended with CODE.
judge() {
	local code=$1 seconds=$2 name=$3 log="$logs/${3// /-}.log" failed_before=$failed
	shift 2
	count_tests "$log" ""
	# A program that died or hung has failed even if no single test said so.
	if [ "$code" != 0 ] && [ $failed = "$failed_before" ]; then failed=$((failed + 1)); fi
	if [ "$code" = 101 ] && run_again "$@"; then code=0; fi
	if [ "$code" = 0 ]; then
		echo "ok      $name: $summary ($seconds s)"
	else
		echo "FAILED  $name: $summary, exit code $code"
		show_log "$log"
	fi
}

run_tests() {
	local code=0 started=$SECONDS
	run_program "$@" || code=$?
	judge $code $((SECONDS - started)) "$@"
}

# start_beside and await_beside: the same for a program that sleeps more than it works, beside what comes in between.
start_beside() {
	beside=("$@")
	(
		code=0 started=$SECONDS
		run_program "$@" || code=$?
		echo $((SECONDS - started)) >"$logs/beside"
		exit $code
	) &
	beside_job=$!
}

await_beside() {
	local code=0
	[ ${#beside[@]} -gt 0 ] || return 0
	wait "$beside_job" || code=$?
	judge $code "$(<"$logs/beside")" "${beside[@]}"
}

run_all_tests() {
	local name folder program as_root=() soak=()
	if ! is_root && can_sudo; then as_root=(sudo -n); fi
	while IFS=$'\t' read -r name folder program <&3; do
		case $name in
		# These load programs into the one kernel there is: one at a time, and as root where that can be had.
		kernel) run_tests "$name" "$folder" "${as_root[@]}" "$program" --test-threads=1 --show-output ;;
		# Its tests share one Kafka and one Elasticsearch, which they stop and start.
		pipeline) run_tests "$name" "$folder" "${as_root[@]}" "$program" --test-threads=1 --show-output ;;
		soak) soak=("$name" "$folder" "${as_root[@]}" "$program" --test-threads=1 --show-output) ;;
		*) run_tests "$name" "$folder" "$program" --show-output ;;
		esac
	done 3<"$logs/programs"
	# The guests have kernels of their own.
	[ ${#soak[@]} = 0 ] || start_beside "${soak[@]}"
}

list_tests() { packaging/list-tests.sh >"$logs/programs"; }

rebuilds_nothing() {
	cargo build --workspace --all-targets --verbose 2>&1 | tee /dev/stderr | { ! grep -qE '^ *(Compiling|Dirty|Running)'; }
}

run_matrix() {
	local code=0 series log
	echo "booting the kernel matrix"
	rm -rf "$logs/matrix"
	tests/matrix/run.sh --log "$logs/matrix" >"$logs/matrix.log" 2>&1 </dev/null || code=$?
	if [ $code = 77 ]; then
		skips+=("$(sed -n 's/^SKIP //p' "$logs/matrix.log" | tail -n 1)")
		echo "skipped matrix"
		return
	fi
	grep -E '^(MATRIX|GUEST)' "$logs/matrix.log" | grep -v '^GUEST-LEAVES-OUT'
	local left_out
	left_out=$(sed -n 's/^GUEST-LEAVES-OUT //p' "$logs"/matrix/*.log | head -n 1)
	[ -z "$left_out" ] || skips+=("matrix: $left_out")
	while read -r series code; do
		log=$logs/matrix/$series.log
		summary="no result"
		if [ -e "$log" ]; then
			count_tests "$log" "matrix $series: "
			failed=$((failed - $(awk '/^GUEST-AGAIN/ { sum += $2 } END { print sum + 0 }' "$log")))
			passed=$((passed + $(grep -c '^GUEST-CHECK ok' "$log")))
			failed=$((failed + $(grep -c '^GUEST-CHECK failed' "$log")))
		fi
		if [ "$code" = 0 ]; then
			echo "ok      matrix $series: $summary"
		else
			[ "$code" -lt 97 ] || failed=$((failed + 1))
			echo "FAILED  matrix $series: $summary, exit code $code"
			[ ! -e "$log" ] || show_log "$log"
		fi
	done < <(sed -nE 's/^MATRIX ([^ ]+) rc=([0-9]+).*/\1 \2/p' "$logs/matrix.log")
	if ! grep -q '^MATRIX' "$logs/matrix.log"; then
		failed=$((failed + 1))
		echo "FAILED  matrix"
		show_log "$logs/matrix.log"
	fi
}

finish() {
	local skip
	if [ ${#skips[@]} -gt 0 ]; then
		echo
		echo "Skipped:"
		for skip in "${skips[@]}"; do echo "  - $skip"; done
	fi
	echo
	echo "$passed passed, $failed failed, ${#skips[@]} skipped"
	[ $failed = 0 ]
	exit
}

packaging/setup.sh test || exit 1
mkdir -p "$logs"
echo "kpulse: building and testing; a first build takes some minutes"
for lint in rustfmt clang-format shellcheck; do check $lint packaging/lint.sh $lint; done
# With the tests, whose needs choose features of what both use: without them it would all be built a second time.
check "build" cargo build --workspace --all-targets || finish
check "test programs" list_tests || finish
check "second build rebuilds nothing" rebuilds_nothing
run_all_tests
run_matrix
await_beside
check clippy packaging/lint.sh clippy
finish
