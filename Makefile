# Everything starts here: `make demo`, `make test`. Only python3 (3.11 or newer) has to be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := .cache
CLIENTS := $(CACHE)/clients
UV := $(BIN)/uv
UV_INSTALL := $(UV) pip install --quiet --python $(BIN)/python
# From the public index alone, and without a word about where this machine found things.
LOCK := env -u PIP_FIND_LINKS -u UV_FIND_LINKS -u UV_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL \
	-u UV_DEFAULT_INDEX PIP_CONFIG_FILE=/dev/null \
	$(UV) pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(UPGRADE)
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider
EIGHT := XLA_FLAGS=--xla_force_host_platform_device_count=8
SOURCES := src tests tools benchmarks
NATIVE := CMakeLists.txt $(wildcard native/*)
ARM_COMPILER := aarch64-linux-gnu-g++
ARM_ROOT := /usr/aarch64-linux-gnu
QEMU = $(shell command -v qemu-aarch64 || command -v qemu-aarch64-static)

MODEL := smollm2-135m-instruct
# Those that need nothing given; the others say in their first lines what they want.
BENCHMARKS := start_up sampling train_step

.DEFAULT_GOAL := help
.PHONY: help demo test test-network fuzz-serve check check-native check-forged check-neon check-wheel check-clients bench docs lock clean

help:
	@echo "make demo   fetch a real model, complete a prompt, show the next words"
	@echo "make test   all checks and all tests"
	@echo "make check  format, lint, types, import directions, lengths, sizes, locks, spelling"
	@echo "make bench  the benchmarks; make docs: every command in the guides, executed"

demo: $(VENV)/runtime-ready
	@$(BIN)/bluejay generate "Once upon a time" --model bluejay-tiny --max-tokens 40 --temperature 0.6 --seed 2
	@$(BIN)/bluejay suggest "How" --model bluejay-tiny
	@if $(BIN)/bluejay pull $(MODEL); then \
	  $(BIN)/bluejay generate "Once upon a time" --model $(MODEL) --max-tokens 40 --temperature 0 && \
	  $(BIN)/bluejay suggest "How" --model $(MODEL); \
	else echo "The larger model waits for a network: 'make demo' fetches it then."; fi

# The eight-device tests go first, so that the closing line is that of the suite.
test: $(VENV)/dev-ready check
	@rm -rf $(CACHE)/reports
	$(EIGHT) $(PYTEST) tests/multi_device --junit-xml=$(CACHE)/reports/multi-device.xml
	$(PYTEST) --numprocesses=2 --dist=worksteal --junit-xml=$(CACHE)/reports/suite.xml

test-network: $(VENV)/dev-ready
	$(PYTEST) -m network

# Five times as many requests to a server as the suite sends, and other ones at every run; minutes.
fuzz-serve: $(VENV)/dev-ready
	BLUEJAY_FUZZ=5 $(PYTEST) --numprocesses=2 --dist=worksteal tests/serving/test_fuzz.py

check: $(VENV)/dev-ready
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy src
	$(BIN)/lint-imports --cache-dir $(CACHE)/import-linter
	$(BIN)/python tools/check_lengths.py
	$(BIN)/python tools/check_size.py
	$(BIN)/python tools/check_locks.py
	git ls-files -z | xargs -0 $(BIN)/codespell

# The kernels against plain loops, under the sanitizers that find reads beyond an end and races.
check-native: $(VENV)/runtime-ready
	@for sanitizer in address,undefined thread; do \
	  folder=build/check-$$(echo $$sanitizer | tr , -); \
	  env PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B $$folder -G Ninja \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DBLUEJAY_SANITIZE=$$sanitizer >/dev/null && \
	  $(BIN)/ninja -C $$folder --quiet check && \
	  echo "== $$sanitizer" && $$folder/check || exit 1; done

# The library that Python loads, under the address sanitizer: forged files, and every kernel by its tests.
check-forged: $(VENV)/dev-ready
	@echo "Compiling the library with the address sanitizer (a minute) ..."
	@env PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/check-forged -G Ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DBLUEJAY_SANITIZE=address >/dev/null
	@$(BIN)/ninja -C build/check-forged --quiet bluejay_kernels
	@env LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 BLUEJAY_KERNELS=build/check-forged/_kernels.so \
	  $(PYTEST) -q tests/kernels tests/checkpoints/test_packed_hostile.py \
	  tests/checkpoints/test_packed_native.py tests/checkpoints/test_packed_gguf.py

# The kernels for 64-bit ARM, run by an emulator: on a processor with dot products of bytes, and without.
check-neon: $(VENV)/runtime-ready
	@command -v $(ARM_COMPILER) >/dev/null && test -n "$(QEMU)" || { echo "$(ARM_COMPILER) or" \
	  "qemu-aarch64 is not here: install them (Debian and Ubuntu: 'apt install" \
	  "g++-aarch64-linux-gnu qemu-user')." >&2; exit 1; }
	@env PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/check-neon -G Ninja \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >/dev/null
	@echo "Compiling the check and the library for 64-bit ARM (a minute) ..."
	@$(BIN)/ninja -C build/check-neon --quiet check bluejay_kernels
	@echo "== emulated, with dot products"
	@$(QEMU) -cpu max -L $(ARM_ROOT) build/check-neon/check portable neon
	@echo "== emulated, without dot products"
	@$(QEMU) -cpu cortex-a57 -L $(ARM_ROOT) build/check-neon/check portable

# Wheel and source archive, installed where no compiler is; minutes, and needs a network.
check-wheel: $(VENV)/dev-ready
	@$(BIN)/python tools/check_wheel.py

# Other people's programs against `bluejay serve`, scores and texts compared with those made here. BLUEJAY_DATA
# names the folder with evals/, LLAMA_VIM one with the sources of llama.vim; what is not given is said.
check-clients: $(VENV)/dev-ready $(CLIENTS)/ready
	@$(BIN)/python tools/check_clients.py --programs $(CLIENTS)/bin $(CHECK_CLIENTS)

bench: $(VENV)/dev-ready
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

docs: $(VENV)/runtime-ready
	$(BIN)/python tools/run_docs.py README.md docs/guides

# `make lock UPGRADE=--upgrade` takes the newest versions, without it only what changed.
lock: $(VENV)/dev-ready
	$(LOCK) pyproject.toml --extra hub --extra serve --extra train --group build -o requirements.lock
	$(LOCK) pyproject.toml --extra hub --extra serve --extra train --group dev -c requirements.lock -o requirements-dev.lock
	$(LOCK) pyproject.toml --group golden -o requirements-golden.lock
	$(LOCK) --group clients -o requirements-clients.lock

clean:
	rm -rf $(CACHE) build dist
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment, made once and remade when a lock changes ----

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 or" \
	  "newer, or name one with 'make PYTHON=/path/to/python3'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is" \
	  "$$($(PYTHON) -V 2>&1), but 3.11 or newer is needed: install one and name it with" \
	  "'make PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make" \
	  "environments: install its venv module (Debian and Ubuntu: 'apt install" \
	  "python3-venv') and run make again." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# pip brings uv, with the hashes of the lock; uv brings the rest.
$(UV): | $(BIN)/python
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  -r $(VENV)/uv.lock

$(VENV)/runtime-ready: requirements.lock pyproject.toml $(NATIVE) | $(UV)
	@echo "Installing what Bluejay runs on, and compiling its kernels (once) ..."
	@$(UV_INSTALL) --compile-bytecode --require-hashes -r requirements.lock
	@env PATH="$(CURDIR)/$(BIN):$$PATH" $(UV_INSTALL) --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import importlib.util as u; u.find_spec("bluejay.kernels._kernels") or \
	  print("The kernels did not compile, so the slower reference runs: is there a C++ compiler?")'
	@touch $@

$(VENV)/dev-ready: requirements-dev.lock $(VENV)/runtime-ready
	@echo "Installing what the tests run on (once) ..."
	@$(UV_INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

$(CLIENTS)/ready: requirements-clients.lock $(VENV)/runtime-ready
	@echo "Installing the clients that the server is tried with (once, 700 MB) ..."
	@$(UV) venv --quiet --allow-existing --python $(BIN)/python $(CLIENTS)
	@$(UV) pip install --quiet --python $(CLIENTS)/bin/python --require-hashes \
	  -r requirements-clients.lock
	@touch $@
