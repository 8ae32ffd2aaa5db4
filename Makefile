# Everything that is done with this repository. Each target sets up what it needs.
#   make demo      see it work: OpenBao, a node and leasehold on loopback, in under a minute once built
#   make test      all tests, against real parts; as root
#   make lint      formatting, clippy, rustdoc, licences
#   make check-deploy  chart, manifests, alerts, examples and docs, without a cluster
#   make image     the static binary and its image, to target/image/leasehold.oci
#   make check-image   builds the image and tries it: content, size, an empty root, a container
#   make repro_build   builds the binary from two paths and compares
#   make bench     latency of a Mount beside the bare round trips of the same client
#   make compare   the in-pod agent beside `bao agent`: the table of docs/agent.md
#   make soak      the tests that take hours
#   make simulate  node-days of the core on a simulated clock
#   make help      this text

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint deny_clean image check-image repro_build bench compare soak simulate check-deploy

# Tests that watch their whole process (its memory, its log, its descriptors) run one by one.
ALONE := hostile_vault projection
TESTS := $(patsubst tests/%.rs,--test=%,$(filter-out $(ALONE:%=tests/%.rs),$(wildcard tests/*.rs)))

# The simulator: the core between models of the server, the shell and the kubelet.
OPTIMISED := CARGO_PROFILE_TEST_OPT_LEVEL=3
SIMULATIONS := simulate_node_days simulate_fleet herd_sim

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

setup:
	@scripts/setup

demo: setup
	@cargo build -q --locked --bin leasehold --example demo
	@cargo run -q --locked --example demo

test: setup
	# 20,000 node-days want optimised code: of this package only, so that no dependency is built again.
	$(OPTIMISED) LEASEHOLD_SEEDS=20000 cargo test --locked --lib -- --nocapture $(SIMULATIONS)
	# Most tests wait for something real, so more run at once than there are cores. Benchmarks are not run.
	RUST_TEST_THREADS=4 cargo test --locked --lib --bins $(TESTS) -- $(SIMULATIONS:%=--skip %)
	RUST_TEST_THREADS=1 cargo test --locked $(ALONE:%=--test=%)
	cargo test --locked --doc

lint: deny_clean
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

# Licences, sources and bans of every dependency.
deny_clean:
	@scripts/setup lint
	target/tools/cargo-deny --locked check bans licenses sources

image:
	@scripts/image

check-image:
	@scripts/check-image

repro_build:
	@scripts/check-image repro_build

bench: setup
	cargo bench --locked --benches

compare: setup
	cargo build --locked --release --bin leasehold
	LEASEHOLD_COMPARED=$$PWD/target/release/leasehold cargo test --locked --test agent -- --ignored --nocapture compare

# The same tests at length: the races of the writer, and mounts that come and go under kills.
soak: setup
	LEASEHOLD_RACE_CYCLES=100000 cargo test --locked --test projection
	LEASEHOLD_CHURN=10000 cargo test --locked --test leases churn

# Seeds from LEASEHOLD_FIRST_SEED on, LEASEHOLD_SEEDS of them; then a fleet of LEASEHOLD_NODES.
simulate:
	$(OPTIMISED) LEASEHOLD_SEEDS=$${LEASEHOLD_SEEDS:-20000} cargo test --locked --lib -- \
		--include-ignored --nocapture --test-threads=1 $(SIMULATIONS) simulate_fleet_day

check-deploy:
	@scripts/check-deploy
