#!/usr/bin/env bash
# Builds every test program of the workspace and lists them, a line each: NAME <tab> PACKAGE FOLDER <tab> PROGRAM.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

cd "$ROOT"
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
cargo test --quiet --workspace --no-run --message-format=json-render-diagnostics >"$messages"
# The kind says which of a package's programs it is: the library's own tests, a binary's, or a file under tests/.
sed -nE 's/^.*"manifest_path":"([^"]*)\/Cargo\.toml","target":\{"kind":\["([^"]*)".*"name":"([^"]*)","src_path".*"test":true\},"features".*"executable":"([^"]*)".*$/\2\t\3\t\1\t\4/p' "$messages" |
	awk -F '\t' -v OFS='\t' '{ print ($1 == "test" ? $2 : $2 " (" $1 ")"), $3, $4 }'
