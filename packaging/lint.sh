#!/usr/bin/env bash
# Checks what tools can check of the code's form: lint.sh [rustfmt | clang-format | clippy | shellcheck]..., or all.
# Exits 77, saying why, when the tool of a check asked for by name is missing. lint.sh --fix formats the code instead.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
cd "$ROOT"

skip() { echo "SKIP $*"; return 77; }

# Files of the repository, new ones included, that match the patterns.
files() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do [ ! -e "$file" ] || echo "$file"; done; }

lint_rustfmt() {
	have cargo-fmt || { skip "rustfmt is missing (rustup component add rustfmt)"; return; }
	if [ -n "$fix" ]; then cargo fmt --all; else cargo fmt --all -- --check --color never; fi
}

lint_clang_format() {
	local tool sources
	tool=$({ compgen -c clang-format || true; } | grep -E '^clang-format(-[0-9]+)?$' | sort -V | head -n 1)
	[ -n "$tool" ] || { skip "clang-format is missing"; return; }
	mapfile -t sources < <(files '*.c' '*.cc' '*.h')
	[ ${#sources[@]} = 0 ] || if [ -n "$fix" ]; then "$tool" -i "${sources[@]}"; else "$tool" --dry-run --Werror "${sources[@]}"; fi
}

lint_clippy() {
	have cargo-clippy || { skip "clippy is missing (rustup component add clippy)"; return; }
	cargo clippy --quiet --workspace --all-targets -- -D warnings
}

lint_shellcheck() {
	local scripts
	have shellcheck || { skip "shellcheck is missing"; return; }
	mapfile -t scripts < <(files '*.sh' .ci/run)
	shellcheck "${scripts[@]}"
}

fix=''
if [ "${1:-}" = --fix ]; then
	fix=1
	set -- rustfmt clang-format
fi
[ $# -gt 0 ] || set -- rustfmt clang-format clippy shellcheck
status=0
for check in "$@"; do
	code=0
	"lint_${check//-/_}" || code=$?
	if [ $code = 77 ] && [ $# -gt 1 ]; then code=0; fi
	[ $code = 0 ] || status=$code
done
exit $status
