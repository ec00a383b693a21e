#!/bin/sh
# Makes sure that the tools that the tests need are there. Prints the folder to put in front of PATH.
set -eu
cd "$(dirname "$0")/.."
. scripts/need.sh

nextest=0.9.143

command -v cargo >/dev/null 2>&1 || { say "error: cargo is missing; see https://rustup.rs"; exit 1; }
need cc gcc libc6-dev
for part in fmt clippy; do
    cargo $part --version >/dev/null 2>&1 || { say "error: cargo $part is missing; rustup component add rustfmt clippy"; exit 1; }
done
if ! PATH="$PWD/target/tools/bin:$PATH" cargo nextest --version >/dev/null 2>&1; then
    say "building cargo-nextest $nextest into target/tools (once)"
    # It is run once a day and built on small machines: build it fast rather than make it fast.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG=false CARGO_TARGET_DIR="$PWD/target/tools/build" \
        cargo install --quiet --locked --root target/tools --version "$nextest" \
        --no-default-features --features default-no-update cargo-nextest >&2
    rm -rf target/tools/build
fi
printf '%s\n' "$PWD/target/tools/bin"
