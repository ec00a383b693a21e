#!/bin/sh
# Builds the programs, and what rehearses them, as they are shipped.
set -eu
cd "$(dirname "$0")/.."
. scripts/need.sh

command -v cargo >/dev/null 2>&1 || { say "error: cargo is missing; see https://rustup.rs"; exit 1; }
need cc gcc libc6-dev
cargo build --release --bin hotwarm --bin syncd --bin rehearse
