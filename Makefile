# What a newcomer needs is `make demo` and `make test`; the rest are their parts.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO ?= go
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# One way to compile for all but the race detector, which needs cgo: the compiled packages are shared.
export CGO_ENABLED ?= 0
LDFLAGS := -s -w -X fabric/internal/version.Version=$(VERSION)
TOPOLOGY ?= lab/topologies/three-sites/three-sites.clab.yml
FUZZTIME ?= 30s
# For what others can hardly reach, or is hardly more than a split.
FUZZSHORT ?= 10s
# Packages whose tests keep time with real neighbours run one at a time, and before what else the machine has to do.
TIMED := ^fabric/(cmd/fabric-|overlay/(bfd|carrier|links)$$|internal/kernel/|internal/site$$|lab)
# Other work on the machine is not what a proof without a lost packet is about: userspace WireGuard that waits for a processor drops some.
FAVOURED := nice -n -10

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.PHONY: deps
deps: ## install what is missing (Debian packages, by name; needs root)
	@sh lab/deps.sh

.PHONY: build
build: ## build the daemons, the CLI and the lab's emulator into bin/
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/fabric-site ./cmd/fabric-links ./cmd/fabricctl ./lab/cloudemu/cmd/cloudemu

.PHONY: demo
demo: deps build ## bring the three-sites fabric up in namespaces, prove it, take it down (KEEP=1 leaves it up)
	$(FAVOURED) $(GO) run ./lab/demo $(if $(KEEP),-keep) $(TOPOLOGY)

.PHONY: demo-down
demo-down: ## remove what `make demo KEEP=1` left
	$(GO) run ./lab/demo -down $(TOPOLOGY)

.PHONY: topologies
topologies: deps build ## up, check and down of every topology in namespaces, one after the other
	@lab/topologies/run.sh

.PHONY: bench-demo
bench-demo: deps build ## the demo, then prefix add -> remote kernel 200 times, figures as JSON
	$(GO) run ./lab/demo -timing 200 $(TOPOLOGY)

.PHONY: test
test: deps lint unit fuzz units topologies test-links demo test-vm ## everything, with -race where Go code runs
	@echo 'test: ok'

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l cmd bgp vrf overlay policy cloud internal lab proto systemd)" || { gofmt -l cmd bgp vrf overlay policy cloud internal lab proto systemd; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: unit
unit: ## unit and namespace tests with -race, and the coverage that is promised
	CGO_ENABLED=1 $(GO) build -race ./...
	{ failed=0; \
	CGO_ENABLED=1 $(GO) test -race -vet=off -cover -p 4 -timeout 15m $$($(GO) list ./... | grep -Ev '$(TIMED)') || failed=1; \
	CGO_ENABLED=1 $(FAVOURED) $(GO) test -race -vet=off -cover -p 1 -timeout 15m $$($(GO) list ./... | grep -E '$(TIMED)') || failed=1; \
	exit $$failed; } 2>&1 | tee .test.log
	@sh lab/coverage.sh .test.log 85 internal/config policy bgp/rib overlay vrf internal/reconcile
	@rm -f .test.log

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME, or FUZZSHORT
	@printf '%s\n' \
		"./internal/config FuzzParse $(FUZZTIME)" \
		"./policy FuzzMatcher $(FUZZTIME)" \
		"./lab/cloudemu FuzzSignature $(FUZZTIME)" \
		"./overlay/bfd FuzzDecode $(FUZZTIME)" \
		"./overlay/carrier FuzzFrame $(FUZZTIME)" \
		"./overlay/links/rotation FuzzRead $(FUZZSHORT)" \
		"./overlay FuzzParsePlan $(FUZZSHORT)" \
		"./bgp/rib FuzzText $(FUZZSHORT)" \
		"./internal/kernel/linux FuzzDecode $(FUZZSHORT)" \
		"./internal/check FuzzHostFiles $(FUZZSHORT)" | xargs -P 2 -L 1 lab/fuzz.sh

.PHONY: units
units: build ## systemd-analyze verify, and security at most 4.0
	@sh systemd/check.sh bin

.PHONY: test-vm
test-vm: ## the kernel's tests, FRR as a gateway and the demo on Debian's kernel with VRF devices and WireGuard, in a virtual machine
	@lab/vm/test.sh

.PHONY: lab-clab
lab-clab: ## two-site by the real containerlab and docker, in a virtual machine (needs containerlab, or a Go proxy that has all of its modules)
	@lab/vm/clab.sh

.PHONY: test-boot
test-boot: ## the Debian package under systemd in a virtual machine: order, faults, watchdog, upgrade, removal (BOOTS=10 boots ten times)
	@lab/vm/test.sh boot

.PHONY: interop
interop: deps ## beside FRR, BIRD, GoBGP and ExaBGP, a hostile neighbour and 64 VRFs; writes the table of docs/interop.md (6 min)
	INTEROP=full $(GO) test -count=1 -v -timeout 15m ./lab/interop

.PHONY: interop-vm
interop-vm: ## the same and FRR as a gateway, in the virtual machine with VRF devices and WireGuard; writes its tables of docs/interop.md (8 min)
	LIMIT=3600 lab/vm/test.sh lab/interop
	cp .cache/vm/results/interop.md docs/interop.md

.PHONY: test-64vrf
test-64vrf: deps ## 64 VRFs in one fabric-site that have everything in common, and a leak matrix over all of them
	INTEROP=full $(GO) test -count=1 -v -run TestManyVRFs ./lab/interop

.PHONY: bench-bfd
bench-bfd: deps ## 50, 200, 500 BFD sessions: CPU, memory, false Downs beside FRR's bfdd, as JSON (7 min)
	$(GO) run ./lab/bench bfd

.PHONY: bench-failover
bench-failover: deps ## tunnels and third-party paths fail: longest gap, resets, messages, beside FRR and BIRD, as JSON (25 min)
	$(GO) run ./lab/bench failover

.PHONY: bench-restart
bench-restart: deps ## fabric-site is stopped, killed and replaced ten times each under traffic: packets, routes, neighbours, as JSON (10 min)
	$(GO) run ./lab/bench restart

.PHONY: test-links
test-links: deps ## short runs of failover, restart and packet loss compared with their limits (5 min)
	$(GO) run ./lab/bench links-check

.PHONY: soak
soak: deps build ## what takes long: BFD on busy cores, 20 rounds of new keys, 5 min of a network that loses 1 % and forgets NAT flows (13 min)
	BFD_BUSY=60s $(GO) test -count=1 -v -run '^TestBusy$$' ./overlay/bfd
	$(FAVOURED) $(GO) run ./lab/demo -rotations 20 -limit 10m $(TOPOLOGY)
	$(GO) run ./lab/bench loss --duration 5m

.PHONY: deb
deb: ## Debian packages for amd64 and arm64 into dist/
	@VERSION= sh systemd/packaging/build.sh dist

.PHONY: deb-check
deb-check: ## build the packages twice and compare, lintian, maintainer scripts in a chroot (needs lintian, mmdebstrap)
	@mkdir -p .cache
	@[ -e .cache/bookworm.tar ] || mmdebstrap --variant=minbase bookworm .cache/bookworm.tar
	@VERSION= sh systemd/packaging/check.sh .cache/bookworm.tar

.PHONY: proto
proto: ## generate Go from proto/ (buf, protoc-gen-go and protoc-gen-go-grpc on PATH)
	cd proto && buf lint && buf generate

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist .cache lab/topologies/*/.run
