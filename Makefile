# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/sh
GO    ?= go
BIN   := bin
ARGS  ?=

.PHONY: help doctor fetch build run test unit vm fuzz lint bench image clean

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the programs into bin/
	@mkdir -p $(BIN)
	$(GO) build -trimpath -o $(BIN)/davit ./tools/davit
	$(GO) build -trimpath -o $(BIN)/davit-hostd ./tools/hostd
	$(GO) build -trimpath -o $(BIN)/davitd ./firmware/cmd/davitd
	$(GO) build -trimpath -o $(BIN)/davit-vcard ./firmware/cmd/vcard

run: build ## Boot the emulated server (ARGS=--exit-when-ready for scripts)
	@$(BIN)/davit up $(ARGS)

fetch: build ## Fill the package cache, so that everything works offline
	@$(BIN)/davit fetch

doctor: build ## Say what this machine lacks, and what mends it
	@$(BIN)/davit doctor

image: build ## Build the card's image, print its size and content
	@$(BIN)/davit image build $(ARGS)

test: lint unit vm ## Everything: lint, unit tests, fuzz seeds, house rules, whole-system tests

lint: ## gofmt, vet, staticcheck
	@echo "== lint"
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt these:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

unit: fetch ## Unit tests, fuzz seeds and house rules, with the race detector where cgo is there
	@echo "== unit tests, fuzz seeds, house rules"
	$(GO) test $(RACE) ./firmware/... ./initramfs/... ./board/... ./secureboot/... ./tools/... ./tests/layers/...

vm: fetch ## Whole-system tests on emulated machines
	@echo "== whole-system tests"
	$(GO) test -count=1 -p 1 -timeout 25m $$($(GO) list ./tests/... | grep -v /tests/layers)

fuzz: ## Fuzz every target for FUZZTIME (default 20s) each
	@tests/fuzz.sh $(or $(FUZZTIME),20s)

bench: fetch ## Benchmarks: each package's, a card's boot, and its block path against QEMU's
	$(GO) test -run '^$$' -bench . -benchmem ./firmware/...
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 90m ./tests/bench

clean: ## Remove what was built and the state of runs (the package cache stays)
	rm -rf $(BIN) .davit

# The race detector needs a C compiler; without one the tests run without it.
RACE := $(shell command -v cc >/dev/null 2>&1 && echo -race)
