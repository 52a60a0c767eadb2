# SPDX-License-Identifier: Apache-2.0
# GNU make. `make help` lists the targets; every variable set with ?= can be overridden.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

GOLANGCI_LINT_VERSION ?= v2.15.0
CLANG_FORMAT ?= clang-format-19
BPF2GO_CC ?= clang-19
BPF2GO_STRIP ?= llvm-strip-19
export CLANG_FORMAT BPF2GO_CC BPF2GO_STRIP

PKGS ?= ./...
TESTFLAGS ?=
TEST_TIMEOUT ?= 20m
DEMOFLAGS ?=

# As root, everything but tests and demo runs as the owner of the checkout, so that no file in it, nor
# in that user's Go caches, comes to belong to root. AS_OWNER is empty in root's own checkout.
# WITH_SETUID leaves the go command, running as the owner, just what it takes to start the test
# binaries as root again, which EXEC_AS_ROOT makes it do.
ifeq ($(shell id -u),0)
owner := $(shell stat -c %u .)
owner_home := $(shell getent passwd $(owner) | cut -d: -f6)
ifneq ($(filter-out 0,$(owner)),)
ifneq ($(owner_home),)
AS_OWNER := env HOME=$(owner_home) setpriv --reuid=$(owner) --regid=$(shell id -g $(owner)) --init-groups
WITH_SETUID := --inh-caps=+setuid,+setgid --ambient-caps=+setuid,+setgid
EXEC_AS_ROOT := -exec 'setpriv --reuid=0 --regid=0 --clear-groups --inh-caps=-setuid,-setgid env HOME=$(HOME)'
endif
endif
endif

# Looked up when first needed; .ci/find-go says what to do if there is none.
GO ?= $(eval GO := $(or $(shell $(AS_OWNER) .ci/find-go),$(error no usable Go)))$(GO)
GOLANGCI_LINT ?= $(eval GOLANGCI_LINT := $(shell $(AS_OWNER) $(GO) env GOPATH)/bin/golangci-lint)$(GOLANGCI_LINT)

gofmt = $(shell $(AS_OWNER) $(GO) env GOROOT)/bin/gofmt

VERSION ?= $(shell $(AS_OWNER) git describe --tags --always --dirty 2>/dev/null || echo unknown)

# C sources that people write.
c_files = find bpf headers test -type f -name '*.[ch]' -not -path '*/testdata/*' -print0

.PHONY: help
help: ## Print this list
	@echo "Usage: make TARGET [VARIABLE=value]..."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: GO, VERSION, PKGS, TESTFLAGS, TEST_TIMEOUT, DEMOFLAGS, GOLANGCI_LINT, CLANG_FORMAT, BPF2GO_CC, BPF2GO_STRIP"

.PHONY: build
build: ## Build bin/plait and bin/plaitlab (needs only Go)
	@$(AS_OWNER) mkdir -p bin
	$(AS_OWNER) env CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/plait ./cmd/plaitlab

.PHONY: demo
demo: need-root build ## Show a failover on two hosts made of namespaces (sudo make demo)
	bin/plaitlab demo $(DEMOFLAGS)

.PHONY: test
test: need-programs need-root build ## Run all tests (sudo make test)
	@report=$$($(AS_OWNER) mktemp -d)/report; \
	trap 'rm -rf "$${report%/*}"' EXIT; \
	$(AS_OWNER) $(GO) build -buildvcs=false -o "$$report" ./test/report; \
	( set -x; $(AS_OWNER) $(WITH_SETUID) env PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin" CGO_ENABLED=1 \
		$(GO) test -json -count=1 -p 1 -timeout $(TEST_TIMEOUT) $(EXEC_AS_ROOT) $(TESTFLAGS) $(PKGS) \
	) | "$$report"

.PHONY: lint
lint: lint-go lint-c lint-licences ## Check Go and C sources (make -k lint: go on after a failure)

.PHONY: lint-go lint-c lint-licences
lint-go:
	@.ci/programs lint
	@unformatted=$$($(AS_OWNER) $(GO) list -f '{{.Dir}}' ./... | $(AS_OWNER) xargs "$(gofmt)" -l); \
	if [ -n "$$unformatted" ]; then echo "make fmt would change:" $$unformatted; exit 1; fi
	$(AS_OWNER) $(GO) vet ./...
	@$(AS_OWNER) test -x "$$(command -v $(GOLANGCI_LINT))" || { echo "golangci-lint is missing; make tools installs it"; exit 1; }
	$(AS_OWNER) env PATH="$(dir $(GO)):$$PATH" $(GOLANGCI_LINT) run

lint-c:
	@.ci/programs lint
	$(c_files) | xargs -0 $(CLANG_FORMAT) --dry-run -Werror

# Every source says its licence on its first lines; for generated files their sources do.
lint-licences:
	@unlicensed=$$($(AS_OWNER) git ls-files -z -- '*.go' '*.[ch]' Makefile '.ci/*' ':!*_bpfel.go' ':!*/testdata/*' | \
		xargs -0 awk 'FNR == 1 { if (f) print f; f = FILENAME } FNR <= 2 && /SPDX-License-Identifier: / { f = "" } END { if (f) print f }'); \
	if [ -n "$$unlicensed" ]; then echo "no SPDX-License-Identifier:" $$unlicensed; exit 1; fi

.PHONY: fmt
fmt: ## Format Go and C sources
	$(AS_OWNER) "$(gofmt)" -w bpf cmd controlplane loader maps test
	$(c_files) | $(AS_OWNER) xargs -0 $(CLANG_FORMAT) -i

.PHONY: generate
generate: ## Compile the kernel programs and write their Go bindings
	@.ci/programs generate
	$(AS_OWNER) $(GO) generate ./...

.PHONY: tools
tools: ## Install golangci-lint at the version CI uses
	@if [ "$$($(AS_OWNER) $(GOLANGCI_LINT) version --short 2>/dev/null)" != "$(GOLANGCI_LINT_VERSION:v%=%)" ]; then \
		set -x; \
		$(AS_OWNER) env GOBIN=$(patsubst %/,%,$(dir $(GOLANGCI_LINT))) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION); \
	fi

.PHONY: clean
clean: ## Remove what build made
	rm -rf bin

.PHONY: need-programs need-root
need-programs:
	@.ci/programs test

need-root:
	@[ "$$(id -u)" = 0 ] || { echo "Namespaces and kernel programs need root: sudo make $(MAKECMDGOALS)"; exit 1; }
