#!/usr/bin/env bash
#
# Builds a commit twice, and compares what came of it, byte by byte: the program, the list of what is in it, and the image. The
# two builds differ in what must not matter: the folders of sources, artefacts, crates and temporary files, the home, the
# umask, the language and the time zone.
#
#   release/twice.sh FOLDER [COMMIT]
#
# FOLDER is made, and keeps what came of both, without the artefacts on the way. Wants what release/build.sh wants, and twice
# its time. Fails if anything differs; release/compare.sh says where.

set -euo pipefail

die() { printf 'release/twice: %s\n' "$*" >&2; exit 1; }
[[ $# == 1 || $# == 2 ]] || die 'usage: release/twice.sh FOLDER [COMMIT]'
mkdir "$1" || die "$1 must not be there yet"
folder=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
commit=$(git rev-parse --verify --quiet "${2:-HEAD}^{commit}") || die "$2 is no commit"

# rustup looks for its toolchains below HOME, which is another here; the tools that release/tools.sh made serve both.
[[ ! -d $HOME/.rustup ]] || export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}

# Builds below $folder/NAME, whose length is another for each: NAME UMASK LANGUAGE ZONE.
build() (
  local name=$1 root=$folder/$1
  mkdir "$root" "$root/home" "$root/tmp"
  export HOME=$root/home CARGO_HOME=$root/crates CARGO_TARGET_DIR=$root/artefacts TMPDIR=$root/tmp LC_ALL=$3 TZ=$4
  umask "$2"
  git clone --quiet --no-checkout . "$root/sources"
  git -C "$root/sources" -c advice.detachedHead=false checkout --quiet "$commit"
  "$root/sources/release/build.sh" "$root/files"
  "$root/sources/release/sbom.sh" "$root/files/usr/bin/instance-access" "$root/instance-access.cdx.json"
  "$root/sources/release/image.sh" "$root/image.tar" "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')=$root/files"
  rm -rf "$root"/{home,tmp,crates,artefacts,sources}
)
build first 022 C UTC
build the-second-one 077 C.UTF-8 Asia/Kathmandu

release/compare.sh "$folder/first" "$folder/the-second-one"
