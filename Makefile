# Two commands for a newcomer: make demo, make test.

PORT_BASE ?= 18080
DEMO ?= serve
RUNS ?= 5

.PHONY: demo test bench build

build:
	@scripts/programs.sh

# DEMO=failover shows a failover by itself; PORT_BASE moves all ports.
demo: build
	@scripts/python.sh examples/orders/requirements.txt
	@exec cargo run --quiet --release --package examples --bin rehearse -- \
		demo --kind $(DEMO) --port-base $(PORT_BASE) --with-parent

test:
	@scripts/test.sh

bench:
	@RUNS=$(RUNS) scripts/bench.sh
