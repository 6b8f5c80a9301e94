#!/usr/bin/env bash
#
# Writes what a program was built from, as CycloneDX, read out of the program itself, and checks that it is what Cargo.lock
# and Cargo.toml say.
#
#   release/sbom.sh PROGRAM FILE
#
# The program is one that release/build.sh made, of this commit, on a machine of its kind. Wants jq.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
die() { printf 'release/sbom: %s\n' "$*" >&2; exit 1; }
[[ $# == 2 ]] || die 'usage: release/sbom.sh PROGRAM FILE'
program=$1 file=$2
command -v jq >/dev/null || die 'jq is missing; install it (Debian: apt-get install jq)'
tools=$(release/tools.sh auditable2cdx)
export PATH=$tools:$PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
auditable2cdx "$program" >"$work/sbom.json" || die "$program does not say what it was built from; release/build.sh makes one that does"

jq -r '[.metadata.component, .components[]] | .[] | .name + " " + .version' "$work/sbom.json" | sort -u >"$work/said"
cargo tree --locked --offline --edges=normal,build --no-dedupe --prefix=none --format='{p}' --package=instance-access |
  sed -E 's/^([^ ]+) v([^ ]+).*/\1 \2/' | sort -u >"$work/locked"
diff "$work/locked" "$work/said" >&2 || die "$program was built from something else than this commit says (<: Cargo.lock, >: the program)"
mv "$work/sbom.json" "$file"
printf '%s: %s crates\n' "$file" "$(wc -l <"$work/said")"
