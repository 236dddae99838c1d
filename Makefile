# vfolder. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

bin := $(CURDIR)/.build/bin
# Tools are built once per version and user, not once per clone: MinIO alone
# takes minutes.
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vfolder/tools

# Root needs no sudo and nobody is there to be asked; anyone else is asked.
yes := $(if $(filter 0,$(shell id -u)),--yes,$(YES))
# Looked up when used: `make` of a bare machine installs Go first.
GO = $(shell scripts/find-go.sh || echo go-is-missing)

version := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# The Podman client without the parts that need C libraries. -trimpath is for
# tests too, so that they share the build cache with the programs.
tags := remote,containers_image_openpgp,exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper
goflags := -tags=$(tags) -trimpath
# Compiles at once; the machine may be small and the link steps are large.
parallel := 2
pkgs := ./...
test_timeout := 15m

gofumpt_version := v0.12.0
staticcheck_version := v0.8.2
minio_version := v0.0.0-20260212201848-7aac2a2c5b7c

gofumpt := $(cache)/gofumpt@$(gofumpt_version)/gofumpt
staticcheck := $(cache)/staticcheck@$(staticcheck_version)/staticcheck
minio := $(cache)/minio@$(minio_version)/minio

export VFOLDER_BIN := $(bin)
export VFOLDER_MINIO := $(minio)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

.PHONY: demo
demo: ## play the whole story on this machine (asks before it changes anything; YES=--yes does not)
	@scripts/demo.sh $(yes)

.PHONY: test
test: prerequisites-test tools build ## every test, after installing what they need
	$(GO) test $(goflags) -count=1 -p $(parallel) -timeout $(test_timeout) $(pkgs)

.PHONY: race
race: prerequisites-test tools build ## every test with the race detector
	$(GO) test $(goflags) -count=1 -race -p $(parallel) -timeout 30m $(pkgs)

.PHONY: build
build: ## vfolder and vfolderd into .build/bin
	@scripts/find-go.sh >/dev/null || { echo "no Go that is new enough; install it with: make prerequisites" >&2; exit 1; }
	@mkdir -p $(bin)
	$(GO) build $(goflags) -p $(parallel) -ldflags '-s -w -X main.version=$(version)' -o $(bin)/ ./cmd/...

.PHONY: lint
lint: prerequisites $(gofumpt) $(staticcheck) ## go vet, gofumpt and staticcheck
	$(GO) vet $(goflags) $(pkgs)
	@bad=$$($(gofumpt) -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$bad" ]; then printf 'not formatted, fix with: gofumpt -w FILE\n%s\n' "$$bad" >&2; exit 1; fi
	PATH="$$(dirname $(GO)):$$PATH" $(staticcheck) -tags $(tags) $(pkgs)
	bash -n scripts/*.sh .ci/run

.PHONY: bench
bench: prerequisites-test build ## speed of a folder next to a plain directory, a FUSE loopback and the object store
	$(GO) run $(goflags) ./bench $(BENCH)

.PHONY: prerequisites prerequisites-test
prerequisites: ## what building and running need: Debian packages, Go, system settings
	@scripts/prerequisites.sh $(yes)
prerequisites-test:
	@scripts/prerequisites.sh --test $(yes)

.PHONY: tools
tools: $(gofumpt) $(staticcheck) $(minio) ## the pinned tools of lint and test (MinIO takes minutes, once)

$(gofumpt):
	GOBIN=$(@D) $(GO) install mvdan.cc/gofumpt@$(gofumpt_version)
$(staticcheck):
	GOBIN=$(@D) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(staticcheck_version)
$(minio):
	@echo "building MinIO, the second S3 server of the tests: some minutes, once per user"
	GOBIN=$(@D) $(GO) install -p $(parallel) github.com/minio/minio@$(minio_version)

.PHONY: clean
clean: ## remove what was built here (not the tools in the user's cache)
	rm -rf .build
