#!/bin/sh
# Makes a virtual environment with ansible-core, one of the gateway's clients, and prints its path.
# Idempotent; nothing outside the user's cache is touched.
set -eu

version=2.19.14 # the newest that still runs on Python 3.11, as Debian 12 has it
cache="${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/ansible/$version"

if [ ! -f "$cache/complete" ]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "setup-ansible: python3 with venv is needed (Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
    # two runs at once each make their own, and the first to finish wins
    mkdir -p "$cache"
    work="$cache/venv.$$"
    trap 'rm -rf "$work"' EXIT
    python3 -m venv "$work"
    "$work/bin/python" -m pip install --quiet --disable-pip-version-check "ansible-core==$version" >&2
    # a venv cannot be moved, but its python can be linked to
    ln -sfn "$work" "$cache/venv"
    trap - EXIT
    touch "$cache/complete"
fi
echo "$cache/venv"
