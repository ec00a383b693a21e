#!/bin/sh
# All benchmarks: the proxy against its peers, replication against Litestream. RUNS says how often each is run.
set -eu
cd "$(dirname "$0")/.."
. scripts/need.sh

runs=${RUNS:-5}
out=bench/out
mkdir -p "$out"

scripts/programs.sh
scripts/python.sh examples/orders/requirements.txt bench/requirements.txt

say ""
say "== the proxy against its peers"
if [ "$(nproc)" -lt 2 ]; then
    say "skipped: it takes two CPUs, one for the proxy and one for the load"
else
    need wrk wrk
    need h2load nghttp2-client
    need openssl openssl
    cargo build --quiet --release --manifest-path bench/tools/Cargo.toml --target-dir target/bench-tools
    rm -f "$out/proxy.jsonl"
    netns=
    [ "$(id -u)" = 0 ] || netns=--no-netns
    python3 bench/bench.py run $netns --runs "$runs" --dur 3 --out "$out/proxy.jsonl" \
        --tests keepalive,newconn,rate,body1m,failover:kill9:safe,failover:stop:safe
    python3 bench/bench.py report "$out/proxy.jsonl" | tee "$out/proxy.md"
fi

say ""
say "== replication"
apart=
pinned=
if [ "$(nproc)" -ge 2 ]; then
    # CPU 0 is node A's; everything else, the load as well, keeps off it.
    apart=--apart
    pinned="taskset -c 1-$(($(nproc) - 1))"
fi
$pinned cargo run --quiet --release --package examples --bin rehearse -- bench --runs "$runs" $apart | tee "$out/replication.txt"
