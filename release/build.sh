#!/usr/bin/env bash
#
# Builds the program as it is released and lays what the image has into FOLDER: the program and the certificate
# authorities. The Containerfile runs this script and no other; so does release/image.sh, which needs no engine.
#
#   release/build.sh FOLDER
#
# Wants rustc of the version that the Containerfile begins with, a C compiler, make, readelf (Debian: binutils), the C library
# as an archive (libc6-dev), ca-certificates, and crates.io. CARGO_TARGET_DIR and CARGO_BUILD_JOBS are cargo's own.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
die() { printf 'release/build: %s\n' "$*" >&2; exit 1; }

[[ $# == 1 ]] || die 'usage: release/build.sh FOLDER'
folder=$1
# Before minutes of building: without it nobody would know whether the program is static.
command -v readelf >/dev/null || die 'readelf is missing; install binutils'

# Another compiler makes another program: then nobody could build it again and compare.
wanted=$(sed -nE 's|^FROM [^ ]*/rust:([0-9.]+)-.*|\1|p' Containerfile)
have=$(rustc --version | cut -d' ' -f2)
[[ $have == "$wanted" ]] ||
  die "rustc is $have, and releases are built by $wanted (Containerfile); with rustup: RUSTUP_TOOLCHAIN=$wanted"
tools=$(release/tools.sh cargo-auditable)
export PATH=$tools:$PATH

cargo fetch --locked

# The program says where a panic was, by path: the same ones wherever it is built. No other flags than these. The last that
# fits wins, so the target folder, which may lie inside of this one, stands last.
target=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")
unset CARGO_ENCODED_RUSTFLAGS CFLAGS CXXFLAGS LDFLAGS RUSTC_WRAPPER
export RUSTFLAGS="--remap-path-prefix=$PWD=/src"
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
  RUSTFLAGS+=" --remap-path-prefix=$sources=/crates"
done
RUSTFLAGS+=" --remap-path-prefix=$target=/src/target"
# Kernels of arm64 have pages of 4, 16 or 64 KiB, and jemalloc is built for one size: a larger one does on all of them.
if [[ $(uname -m) == aarch64 ]]; then
  export JEMALLOC_SYS_WITH_LG_PAGE=16
fi

# crt-static for the program alone: it holds the C library, and no loader is needed to start it. --offline: what is built
# is what was fetched by Cargo.lock's digests.
cargo auditable rustc --release --locked --offline --bin instance-access -- -C target-feature=+crt-static
program=$target/release/instance-access
dynamic=$(readelf --dynamic "$program")
if grep NEEDED <<<"$dynamic"; then
  die "$program asks for shared libraries; the image has none"
fi
# A path of whoever builds would make it another program elsewhere, and tell of them.
for path in "$PWD" "$target" "${CARGO_HOME:-$HOME/.cargo}" "$(rustc --print sysroot)"; do
  if [[ $path/ != /src/* ]] && grep --quiet --text --fixed-strings "$path/" "$program"; then
    die "$program names $path; see --remap-path-prefix above"
  fi
done
"$program" --version

authorities=/etc/ssl/certs/ca-certificates.crt
[[ -s $authorities ]] || die "$authorities is missing; install ca-certificates"
install -D --mode=755 "$program" "$folder/usr/bin/instance-access"
install -D --mode=644 "$authorities" "$folder/etc/ssl/certs/ca-certificates.crt"
