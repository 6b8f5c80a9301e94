#!/usr/bin/env bash
# Says in one line what is missing of Rust.
set -euo pipefail
if ! command -v cargo >/dev/null; then
	echo "cargo is missing: install Rust 1.94 or newer (https://rustup.rs), and put ~/.cargo/bin into PATH" >&2
	exit 1
fi
found=$(rustc --version | sed -E 's/^rustc ([0-9]+)\.([0-9]+).*/\1 \2/')
read -r major minor <<<"$found"
if [ "$major" -lt 1 ] || { [ "$major" -eq 1 ] && [ "$minor" -lt 94 ]; }; then
	echo "rustc $major.$minor is too old: the AWS SDK needs 1.94; run rustup update stable" >&2
	exit 1
fi
if ! command -v cc >/dev/null; then
	echo "a C compiler is missing: as root, apt-get install --no-install-recommends gcc libc6-dev" >&2
	exit 1
fi
