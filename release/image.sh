#!/usr/bin/env bash
#
# Packs what release/build.sh laid into folders as one OCI image, for each architecture a folder, without an engine: what
# the Containerfile's last stage does. The same folders give the same bytes, whenever and by whomever it is run.
#
#   release/image.sh ARCHIVE amd64=FOLDER [arm64=FOLDER]
#
# Says the archive and the image's digest, which is what a chart pins once it is pushed as it is:
#
#   skopeo copy --all --preserve-digests oci-archive:ARCHIVE docker://…
#
# User, port and entry point are the Containerfile's. SOURCE_DATE_EPOCH is the time in it; left out, 0.

set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

die() { printf 'release/image: %s\n' "$*" >&2; exit 1; }
[[ $# -ge 2 ]] || die 'usage: release/image.sh ARCHIVE amd64=FOLDER [arm64=FOLDER]'
archive=$1
shift

recipe=$(dirname "${BASH_SOURCE[0]}")/../Containerfile
# The words behind an instruction of the last stage.
of() { sed -nE "s/^$1 (.*)/\1/p" "$recipe" | tail -n 1; }

epoch=${SOURCE_DATE_EPOCH:-0}
[[ $epoch =~ ^[0-9]+$ ]] || die "SOURCE_DATE_EPOCH is no number of seconds: $epoch"
created=$(date --date="@$epoch" +%Y-%m-%dT%H:%M:%SZ)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/layout/blobs/sha256"

# Sorted, of root, without the times and modes of whoever packs.
pack() { tar --create --format=ustar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$@"; }
digest() { sha256sum "$1" | cut -d' ' -f1; }
# Moves a file among the blobs, and prints its descriptor: TYPE FILE [more fields].
blob() {
  local sum size
  sum=$(digest "$2")
  size=$(stat --format=%s "$2")
  mv "$2" "$work/layout/blobs/sha256/$sum"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s%s}' "$1" "$sum" "$size" "${3:-}"
}

manifests=
for pair in "$@"; do
  architecture=${pair%%=*} folder=${pair#*=}
  [[ $architecture =~ ^(amd64|arm64)$ && -d $folder ]] || die "$pair: not amd64=FOLDER or arm64=FOLDER"
  pack --file="$work/layer" --directory="$folder" --transform='s|^\./||' .
  unpacked=$(digest "$work/layer")
  gzip --no-name --best "$work/layer"
  layer=$(blob layer.v1.tar+gzip "$work/layer.gz")
  printf '{"created":"%s","architecture":"%s","os":"linux","config":{"User":"%s","ExposedPorts":{"%s/tcp":{}},"Entrypoint":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$created" "$architecture" "$(of USER)" "$(of EXPOSE)" "$(of ENTRYPOINT)" "$unpacked" >"$work/config"
  config=$(blob config.v1+json "$work/config")
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$layer" >"$work/manifest"
  manifest=$(blob manifest.v1+json "$work/manifest" ",\"platform\":{\"architecture\":\"$architecture\",\"os\":\"linux\"}")
  manifests+=${manifests:+,}$manifest
done
index() { printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$1"; }
# index.json is no image: it lists those of the layout, and who is given no name, as skopeo is, takes the only one or none. So
# several architectures are one image, which has a list of its own. Nor does a registry ever see index.json.
image=$manifests
if [[ $# -gt 1 ]]; then
  index "$manifests" >"$work/list"
  image=$(blob index.v1+json "$work/list")
fi
index "$image" >"$work/layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
pack --file="$work/archive" --directory="$work/layout" --transform='s|^\./||' .
mv "$work/archive" "$archive"
[[ $image =~ sha256:[0-9a-f]{64} ]]
printf '%s %s\n' "$archive" "${BASH_REMATCH[0]}"
