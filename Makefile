# What a newcomer needs is `make demo` and `make test`; the rest are their parts.
SHELL := /bin/bash
GO ?= go
export CGO_ENABLED ?= 1
BINARIES := fabric-site fabric-links fabricctl
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X fabric/internal/version.Version=$(VERSION)

.PHONY: build
build: ## build the daemons, the CLI and the lab's emulator into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(BINARIES)) ./lab/cloudemu/cmd/cloudemu
