#!/bin/sh
# Makes a virtual environment with moto, whose EC2 the stand-in is compared with, and prints its path. Idempotent.
set -eu
. "$(dirname "$0")/venv.sh"

version=5.2.5
venv moto "$version" "moto[ec2,server]==$version"
