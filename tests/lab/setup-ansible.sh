#!/bin/sh
# Makes a virtual environment with ansible-core, one of the gateway's clients, and prints its path. Idempotent.
set -eu
. "$(dirname "$0")/venv.sh"

version=2.19.14 # the newest that still runs on Python 3.11, as Debian 12 has it
venv ansible "$version" "ansible-core==$version"
