# Coffer: `make help` lists the targets. Everything but `test` and `package` needs only Go and make.

GO        ?= go
DATA      ?= data
FUZZTIME  ?= 5s
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# As dpkg orders versions: v1.2-3-gabc becomes 1.2+3+gabc; without a tag everything is before 0.
PKGVERSION = $(subst -,+,$(patsubst v%,%,$(if $(filter v%,$(VERSION)),,0~)$(VERSION)))
# The time of the commit, so that the same source gives the same package.
EPOCH      = $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
ARCH      ?= $(shell $(GO) env GOARCH)

TOOL      := $(GO) tool -modfile="$(CURDIR)/tools.mod"
# Lists what was skipped and why, which go test does not; where it cannot be had, go test does.
GOTEST     = $(shell $(TOOL) gotestsum --version >/dev/null 2>&1 && echo '$(TOOL) gotestsum --format standard-quiet --' || echo '$(GO) test')
LDFLAGS   := -X main.version=$(VERSION)
# Modules of their own, so that what they pull in stays out of the product's.
NESTED    := bench/clients s3/internal/sigv4/difftest
# What `make test` runs beside Go: command=package.
TESTTOOLS := rclone=rclone s3cmd=s3cmd aws=awscli jq=jq

.DEFAULT_GOAL := build
.PHONY: build run test test-tools bench lint fuzz soak package clean help

build: ## build bin/coffer
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/coffer ./daemon

run: build ## build and serve on ./data: https://127.0.0.1:9000
	bin/coffer serve --data "$(DATA)"

# Without a package argument go test shows the output of what passes too: the clients' counts, and what they skipped and why.
test: build test-tools ## install what the tests need and run all of them
	$(GOTEST) -timeout 15m -skip '^TestSimulation$$' ./...
	$(GO) test -timeout 15m -v -run '^TestSimulation$$' ./disk
	@set -e; for d in $(NESTED); do echo "== $$d"; (cd $$d && $(GO) test -timeout 15m); done

# Installs only what is missing, so that a second run costs nothing. A missing client is skipped by the tests, which say so.
test-tools:
	@missing=; for t in $(TESTTOOLS); do command -v $${t%%=*} >/dev/null || missing="$$missing $${t##*=}"; done; \
	python3 -c 'import boto3' 2>/dev/null || missing="$$missing python3-boto3"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null \
			|| echo "not installed, and skipped by the tests:$$missing"; \
	else echo "not installed (needs root), and skipped by the tests:$$missing"; fi

bench: ## measure, as ratios in one run, what Coffer adds to bare disks and ciphers (BENCHFLAGS="-quick")
	$(GO) run -tags coffer_nullcipher ./bench $(BENCHFLAGS)

lint: ## gofmt, vet, staticcheck, tidy
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) staticcheck -tags coffer_nullcipher ./object/... ./bench
	@set -e; for d in $(NESTED); do echo "== $$d"; (cd $$d && $(GO) vet ./... && $(TOOL) staticcheck ./...); done
	$(GO) mod tidy -diff

fuzz: ## run each fuzz target for FUZZTIME (5s)
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# The long form also runs the daemon on disks that log their writes, fail or are slow.
soak: TESTTOOLS += qemu-storage-daemon=qemu-system-common nbdkit=nbdkit nbdfuse=libnbd-bin losetup=mount cmp=diffutils
soak: build test-tools ## the long form of the tests: hours
	COFFER_SOAK=1 $(GOTEST) -count 1 -timeout 6h ./...
	@set -e; for d in $(NESTED); do echo "== $$d"; (cd $$d && COFFER_SOAK=1 $(GO) test -timeout 6h); done

package: ## build a Debian package in bin/ (ARCH=arm64 for the other architecture)
	@mkdir -p bin/package
	CGO_ENABLED=0 GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/package/coffer ./daemon
	SOURCE_DATE_EPOCH=$(EPOCH) CGO_ENABLED=0 $(GO) run -ldflags '$(LDFLAGS)' ./daemon man bin/package/man
	gzip -9nf bin/package/man/*.8
	CGO_ENABLED=0 $(GO) run -ldflags '$(LDFLAGS)' ./daemon completion bash > bin/package/coffer.bash
	ARCH=$(ARCH) VERSION=$(PKGVERSION) SOURCE_DATE_EPOCH=$(EPOCH) \
		$(TOOL) nfpm package --config systemd/nfpm.yaml --packager deb --target bin/

clean: ## remove what was built (not ./data)
	rm -rf bin

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
