# Everything that is done with this repository. Each target sets up what it needs.
#   make demo      see it work: OpenBao, a node and leasehold on loopback, in under a minute once built
#   make test      all tests, against real parts; as root
#   make lint      formatting, clippy, rustdoc, licences
#   make check-deploy  chart, manifests, alerts, examples and docs, without a cluster
#   make bench     latency of a Mount beside the bare round trips of the same client
#   make soak      the tests that take hours
#   make simulate  node-days of the core on a simulated clock
#   make help      this text

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak simulate check-deploy

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

setup:
	@scripts/setup

demo: setup
	@cargo build -q --locked --bin leasehold --example demo
	@cargo run -q --locked --example demo

test: setup
	cargo test --locked --all-targets
	cargo test --locked --doc

lint:
	@scripts/setup lint
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
	target/tools/cargo-deny --locked check bans licenses sources

bench: setup
	cargo bench --locked --benches

# Long tests are named soak_* and marked #[ignore]; shorter cycles of the same code run in `make test`.
soak: setup
	cargo test --locked --all-targets -- --ignored soak_

simulate:
	cargo test --locked --lib -- --include-ignored simulat

check-deploy:
	@scripts/check-deploy
