#!/bin/sh
# Makes .venv with what the given requirements files pin. Does nothing when that is there already.
set -eu
cd "$(dirname "$0")/.."
. scripts/need.sh

[ $# -gt 0 ] || { say "usage: scripts/python.sh REQUIREMENTS..."; exit 2; }
need python3 python3 python3-venv python3-pip

for file in "$@"; do
    stamp=.venv/installed-$(printf '%s' "$file" | tr / -)
    if [ -x .venv/bin/python ] && [ -f "$stamp" ] && cmp -s "$file" "$stamp"; then
        continue
    fi
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        rm -rf .venv
        # Debian splits venv's own pip off into a package.
        python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || add_packages "python3 -m venv" python3-venv python3-pip
        python3 -m venv .venv
    fi
    say "installing $file into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$file"
    cp "$file" "$stamp"
done
