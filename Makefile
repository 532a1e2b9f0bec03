# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
SHELL := /bin/bash

PACKAGES := clang llvm libbpf-dev libelf-dev zlib1g-dev gcc libc6-dev make bpftool iproute2 nftables openssl prometheus \
            python3 python3-dev python3-venv
# What the tests and benchmarks alone need: other kernels are fetched and booted, proxies are run, disks are made
# and slowed.
TEST_PACKAGES := qemu-system-x86 debian-archive-keyring e2fsprogs ethtool fio fuse3 haproxy iptables mount nginx \
                 util-linux wrk
PYTHON ?= python3
PROXY ?= nginx
VENV := .venv
BIN := $(VENV)/bin
OBJECTS := agent/tidegate/kernel/objects
SOURCES := $(filter-out bpf/types.bpf.c,$(wildcard bpf/*.bpf.c))
HEADERS := $(wildcard bpf/include/*.h)
C_FILES := bench/*.c lab/*.c bpf/*.c bpf/include/*.h agent/tidegate/kernel/*.h $(wildcard tests/kernel/*.c)
BPF_FLAGS := -g -O2 -Wall -Wextra -Wno-unused-parameter -Werror -target bpf -mcpu=v3 -Ibpf \
             -I/usr/include/$(shell gcc -print-multiarch 2>/dev/null)

.PHONY: help setup packages build run test test-kernels unit lint format layouts lab lab-traffic lab-nginx lab-flood bench clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

run: setup ## the live view of this machine, metrics on 127.0.0.1:19469/metrics (root)
	@exec $(BIN)/tidegate run --view

test: setup lint ## everything that this machine can test (root)
	@$(BIN)/pytest

test-kernels: setup ## boot other kernels under emulation and try the agent there (root)
	@$(BIN)/pytest -m vm

test test-kernels bench: PACKAGES += $(TEST_PACKAGES)
lab lab-nginx lab-flood: PACKAGES += nginx
lab: PACKAGES += haproxy

unit: setup ## the tests that need no privilege
	@$(BIN)/pytest -m unit

lab: setup ## the story live, with the agent: PROXY=nginx, haproxy or envoy is the gateway (root)
	@exec $(BIN)/python -m lab --story $(PROXY)

lab-traffic: setup ## upstreams that serve, refuse, reset, hang and lose, with live traffic: try 'tidegate top' (root)
	@exec $(BIN)/python -m lab

lab-nginx: setup ## only a real nginx with one broken keep-alive, under load: try 'tidegate advise' (root)
	@exec $(BIN)/python -m lab --nginx

lab-flood: setup ## a gateway with the limiter, under a flood of spoofed SYNs: try 'tidegate ratelimit mode' (root)
	@exec $(BIN)/python -m lab --flood

bench: setup ## measure the figures of docs/performance.md (root)
	@$(BIN)/python -m bench

lint: setup ## ruff, mypy, clang-format, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## lay out Python and C
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/clang-format -i $(C_FILES)

setup: packages build ## install what is missing, compile, make .venv (root where packages are missing)

# Debian's packages, asked for only where one is missing.
packages:
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
	  echo "tidegate: missing packages:$$missing" >&2; \
	  echo "tidegate: install them as root (Debian 12 or 13: apt-get install$$missing), then run make again" >&2; \
	  exit 3; fi; \
	echo "installing:$$missing"; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >build-apt.log 2>&1 \
	  || { tail -20 build-apt.log >&2; exit 1; }; rm -f build-apt.log

build: $(patsubst bpf/%.bpf.c,$(OBJECTS)/%.bpf.o,$(SOURCES)) $(OBJECTS)/ratelimit_simulation.bpf.o build/types.bpf.o build/programs.bpf.o build/refused.bpf.o build/empty.bpf.o build/pass.bpf.o build/flood.bpf.o $(VENV)/installed

$(OBJECTS)/%.bpf.o: bpf/%.bpf.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@clang $(BPF_FLAGS) -c $< -o $@.tmp && llvm-strip -g $@.tmp && mv $@.tmp $@

# The limiter's program with the clock from a map, and the verdict into one.
$(OBJECTS)/%_simulation.bpf.o: bpf/%.bpf.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@clang $(BPF_FLAGS) -DTIDEGATE_SIMULATION -c $< -o $@.tmp && llvm-strip -g $@.tmp && mv $@.tmp $@

build/%.bpf.o: bpf/%.bpf.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@clang $(BPF_FLAGS) -c $< -o $@.tmp && llvm-strip -g $@.tmp && mv $@.tmp $@

build/%.bpf.o: tests/kernel/%.bpf.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@clang $(BPF_FLAGS) -c $< -o $@.tmp && llvm-strip -g $@.tmp && mv $@.tmp $@

build/%.bpf.o: lab/%.bpf.c Makefile
	@mkdir -p $(@D)
	@clang $(BPF_FLAGS) -c $< -o $@.tmp && llvm-strip -g $@.tmp && mv $@.tmp $@

build/%.bpf.o: bench/%.bpf.c Makefile
	@mkdir -p $(@D)
	@clang $(BPF_FLAGS) -c $< -o $@.tmp && llvm-strip -g $@.tmp && mv $@.tmp $@

layouts: build ## write agent/tidegate/kernel/layouts.py from bpf/include
	@$(BIN)/python bpf/generate_layouts.py build/types.bpf.o > build/layouts.py
	@mv build/layouts.py agent/tidegate/kernel/layouts.py

$(VENV)/installed: pyproject.toml setup.py agent/tidegate/kernel/build_libbpf.py agent/tidegate/kernel/binding.h
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tidegate: Python 3.11 or later is needed, $$($(PYTHON) --version) found; set PYTHON=" >&2; exit 3; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

clean: ## remove what was built
	@rm -rf build $(VENV) $(OBJECTS) agent/tidegate/kernel/_libbpf* agent/*.egg-info
