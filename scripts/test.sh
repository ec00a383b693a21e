#!/bin/sh
# All checks, cheapest first; ends with the summary of all tests.
set -eu
cd "$(dirname "$0")/.."
. scripts/need.sh

step() {
    say ""
    say "== $* ($(($(date +%s) - started)) s)"
}

started=$(date +%s)
step "tools"
PATH="$(scripts/tools.sh):$PATH"
export PATH
scripts/python.sh examples/orders/requirements.txt proxy/tests/grpc/requirements.txt

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

step "rooms"
cargo test --quiet --package shared --test house

step "examples in the documentation"
cargo test --quiet --workspace --doc

step "programs"
cargo build --release --bin hotwarm --bin syncd

step "tests"
# The models as well: they spend their time on memory, and an optimised build of them is no faster (measured).
cargo nextest run --workspace --no-fail-fast
