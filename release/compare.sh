#!/usr/bin/env bash
#
# Compares what two builds made, byte by byte: each file below two folders. Fails if anything differs or is missing, and says,
# of a program, in which sections and by which words.
#
#   release/compare.sh FOLDER OTHER
#
# Wants readelf and strings (Debian: binutils).

set -euo pipefail
export LC_ALL=C

die() { printf 'release/compare: %s\n' "$*" >&2; exit 1; }
[[ $# == 2 && -d $1 && -d $2 ]] || die 'usage: release/compare.sh FOLDER OTHER'
one=$1 other=$2

files() { (cd "$1" && find . -type f -printf '%P\n'); }
digest() { if [[ -f $1 ]]; then sha256sum "$1" | cut -d' ' -f1; else echo missing; fi; }

# Each section that has bytes, and their digest.
sections() {
  local name type offset size
  while read -r name type offset size; do
    [[ $type == NOBITS ]] || printf '%s %s\n' "$name" "$(tail --bytes="+$((16#$offset + 1))" "$1" | head --bytes="$((16#$size))" | sha256sum)"
  done < <(readelf --section-headers --wide "$1" | sed -nE 's/^ *\[ *[0-9]+\] (\.[^ ]+) +([^ ]+) +[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+) .*/\1 \2 \3 \4/p')
}

all=$({ files "$one"; files "$other"; } | sort -u)
[[ $all ]] || die "neither $one nor $other has a file"
differ=()
while read -r file; do
  a=$(digest "$one/$file") b=$(digest "$other/$file")
  if [[ $a == "$b" ]]; then
    printf 'same    %s  %s\n' "$a" "$file"
    continue
  fi
  printf 'differs %s  %s\n        %s\n' "$a" "$file" "$b"
  differ+=("$file")
  if readelf --file-header "$one/$file" "$other/$file" >/dev/null 2>&1; then
    # diff says by its status, too, that there is a difference.
    { diff <(sections "$one/$file") <(sections "$other/$file") || true; } | sed -nE 's/^[<>] ([^ ]+) .*/        in section \1/p' | sort -u
    { diff <(strings "$one/$file" | sort -u) <(strings "$other/$file" | sort -u) || true; } | sed -nE '/^[<>]/s/^/        /p' | sed -n 1,20p
  fi
done <<<"$all"
((${#differ[@]} == 0)) || die "${#differ[@]} of $(wc -l <<<"$all") files differ: ${differ[*]}"
