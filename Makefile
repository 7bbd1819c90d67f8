# Two commands: "make demo" and "make test". Both install the Debian packages
# that are missing, and both work as root or as a user with sudo.

GO     ?= go
MAJORS ?= 13 14 15 16 17 18
# The race detector needs a C compiler; without one the tests run all the same.
RACE   := $(if $(shell command -v gcc || command -v clang),-race)
# Whose checkout this is must not matter.
export GOFLAGS := $(strip $(filter-out -buildvcs%,$(GOFLAGS)) -buildvcs=false)

GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@latest

.DEFAULT_GOAL := help
.PHONY: help build packages demo test test-packages test-matrix bench chaos soak check fmt clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

build: ## build bin/repmgr and bin/repmgrd
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

packages: ## a .deb, a .rpm and an SBOM into bin/packages, docs/packages.md
	@scripts/packages

demo: ## a real four-node cluster on this machine, through the manual's story
	@scripts/deps
	@scripts/demo

# Package election is pure: the race detector would only make its simulation slow. The others start servers, which must
# answer in time: one package after the other.
test: ## everything, on the installed PostgreSQL or on REPMGR_PG_BINDIR
	@scripts/deps
	$(GO) build ./...
	$(GO) vet ./...
	$(GO) test -count=1 -timeout 60m ./election
	$(GO) test $(RACE) -p 1 -count=1 -timeout 60m $$($(GO) list ./... | grep -v /election$$)

test-packages: ## install the packages in a bare Debian, and boot one, as root, with the network; REPMGR_PACKAGES_SUITE=trixie
	@scripts/deps packages
	REPMGR_PACKAGES_CHROOT=1 $(GO) test -count=1 -timeout 30m -v -run 'TestDebian|TestRPM|TestSystemd' ./internal/compat/packages

test-matrix: ## the tests on each of MAJORS (13 to 18), fetched once
	@scripts/deps matrix
	@failed=; for major in $(MAJORS); do \
		bin=$$(scripts/postgres-major $$major) && $$bin/postgres -V && \
		REPMGR_PG_BINDIR=$$bin $(GO) test -count=1 -timeout 30m ./... || failed="$$failed $$major"; \
	done; [ -z "$$failed" ] || { echo "failed on PostgreSQL$$failed"; exit 1; }

bench: ## speed and size beside the peers, in half an hour, into docs/benchmarks.md; an error where a limit falls short; REPMGR_BENCH_LONG=1 for more
	@scripts/deps bench
	@set -e; code=0; dir=$$(mktemp -d -p "$${REPMGR_BENCH_DIR:-/var/tmp}" repmgr-bench-XXXX); trap 'rm -rf "$$dir"' EXIT; chmod 1777 "$$dir"; \
	CGO_ENABLED=0 $(GO) build -trimpath -o "$$dir/bin/" ./cmd/...; $(GO) test -c -o "$$dir/bench.test" ./internal/bench; \
	mkdir -m 1777 "$$dir/out"; mkdir -p bin; cd "$$dir"; \
	TMPDIR="$$dir" REPMGR_BENCH=1 REPMGR_BENCH_BIN="$$dir/bin" REPMGR_BENCH_JSON="$$dir/out/bench.json" REPMGR_BENCH_PAGE="$$dir/out/page.md" \
		./bench.test -test.timeout 40m -test.parallel 8 $(BENCHFLAGS) || code=$$?; \
	cp "$$dir/out/bench.json" "$(CURDIR)/bin/bench.json"; echo "every sample: bin/bench.json"; \
	[ ! -e "$$dir/out/page.md" ] || { cat "$$dir/out/page.md" > "$(CURDIR)/docs/benchmarks.md"; echo "the page: docs/benchmarks.md"; }; \
	exit $$code

chaos: ## break real clusters 1,000 times, in about an hour, as root; CHAOSFLAGS="-faults 20 -v", internal/chaos/doc.go
	@scripts/deps chaos
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...
	CGO_ENABLED=0 $(GO) test -c -o bin/chaos.test ./internal/chaos
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo bin/chaos.test chaos $(CHAOSFLAGS)

soak: ## an hour of loss, jitter and a starved processor: no failover may happen
	@$(MAKE) --no-print-directory chaos CHAOSFLAGS="-soak 1h -topology 3 -mode quorum $(CHAOSFLAGS)"

check: ## formatting, vet, linters, known vulnerabilities, the arrows between packages
	@bad=$$($(GO) run $(GOFUMPT) -l .) && [ -z "$$bad" ] || { echo "not formatted (make fmt does it): $$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(GOLANGCI) run ./...
	$(GO) test -count=1 ./internal/archtest
	@out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1); case $$? in 0) ;; \
		*) echo "$$out"; case "$$out" in *"fetching vulnerabilities"*) echo "govulncheck: its database is out of reach: skipped" ;; *) exit 1 ;; esac ;; esac

fmt: ## format all Go files
	$(GO) run $(GOFUMPT) -w .

clean: ## remove what was built, and what tests keep between runs
	rm -rf bin
	rm -rf $(foreach dir,$(or $(TMPDIR),/nonexistent) /dev/shm /tmp,$(dir)/repmgr-pgtest-$(shell id -u) $(if $(filter 0,$(shell id -u)),$(dir)/repmgr-pgtest-*))
