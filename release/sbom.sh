#!/usr/bin/env bash
#
# Writes what a program was built from, as CycloneDX, read out of the program itself, and checks that all is in it that
# Cargo.toml wants, and nothing that Cargo.lock has not.
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
awk -F'"' '/^name = /{name=$2} /^version = /{print name " " $2}' Cargo.lock | sort -u >"$work/all"
# All that is built is named, and nothing that this commit does not lock. A few more are: cargo tells cargo-auditable also of
# optional crates that only `crate?/feature` speaks of, which are not built.
missing=$(comm -23 "$work/locked" "$work/said") foreign=$(comm -23 "$work/said" "$work/all")
[[ -z $missing$foreign ]] ||
  die "$program was built from something else than this commit says; not named in it: ${missing:-nothing}; not in Cargo.lock: ${foreign:-nothing}"
mv "$work/sbom.json" "$file"
printf '%s: %s crates, %s of them built\n' "$file" "$(wc -l <"$work/said")" "$(wc -l <"$work/locked")"
