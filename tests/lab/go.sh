#!/usr/bin/env bash
#
# Runs go in the folder that it is called in, as everything that the tests take from Go is compiled: with one set of flags.
# Go keeps what it compiled by its flags; with another set the same packages would be compiled again, hundreds of them.
#
#   tests/lab/go.sh build|test [ARGUMENTS]

set -euo pipefail

verb=${1:?tests/lab/go.sh build|test [ARGUMENTS]}
shift
export CGO_ENABLED=0 GOWORK=off GOFLAGS=''
# One process, so that who waits for it, or ends it, has go itself.
exec nice -n 5 go "$verb" -mod=readonly -trimpath -buildvcs=false "$@"
