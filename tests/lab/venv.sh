# For the scripts beside it, to be read with `.`: programs of Python's, each in a virtual environment of its own.

# Makes a virtual environment with a package of PyPI's, once, and prints its path. Nothing outside the user's cache is touched.
#
#   venv NAME VERSION REQUIREMENT
venv() {
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/$1/$2"
    if [ ! -f "$cache/complete" ]; then
        if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
            echo "setup-$1: python3 with venv is needed (Debian: apt-get install python3-venv)" >&2
            exit 1
        fi
        # two runs at once each make their own, and the first to finish wins
        mkdir -p "$cache"
        work="$cache/venv.$$"
        trap 'rm -rf "$work"' EXIT
        python3 -m venv "$work"
        "$work/bin/python" -m pip install --quiet --disable-pip-version-check "$3" >&2
        # a venv cannot be moved, but its python can be linked to
        ln -sfn "$work" "$cache/venv"
        trap - EXIT
        touch "$cache/complete"
    fi
    echo "$cache/venv"
}
