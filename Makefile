# What a person types. The work is done by scripts/ and by the driver of the tests (integration/).
.PHONY: help setup build install up check test campaign host bench
.DEFAULT_GOAL := help
driver := target/x86_64-unknown-linux-gnu/release/garret-integration

# Passed on as they were typed: `$` and quotes in them are the command's, not make's.
override WORKSPACE := $(value WORKSPACE)
override CMD := $(value CMD)
override SHARE := $(value SHARE)
export WORKSPACE CMD SHARE

help: ## this text
	@echo 'make up                                 boot a machine and run the tests of examples/python-service in its devcontainer'
	@echo "make up WORKSPACE=folder CMD='command'  the same for any folder with a devcontainer.json"
	@echo 'make check                              the checks that need no machine: words, spelling, scripts, format, lints, docs, dependencies'
	@echo 'make test                               everything that must pass; GROUPS="lint unit artifacts end-to-end gate" for some of it'
	@echo 'make campaign                           kills at random moments, for hours: KILLS=2000 SEED=1 CYCLES=300'
	@echo "make host                               a shell on a host with garret; CMD='command' SHARE=folder for one command there"
	@echo 'make bench                               garret beside its peers: ONLY=boot,fs SIZE=full PEERS=name=path COMPARE=old.jsonl'
	@echo 'make setup | build | install            Debian packages | programs, kernel, images | into this machine (as root)'
	@echo
	@echo 'The scripts end with the status of the command; make itself ends with 2 where that is not 0: for the status'
	@echo 'itself call scripts/up.sh (WORKSPACE, CMD) or scripts/host.sh (CMD, SHARE) with the same variables.'

setup:
	@scripts/setup.sh

build: setup
	@scripts/build.sh

install: build
	@scripts/install.sh /

up:
	@scripts/up.sh; status=$$?; exit $$status

test: setup
	@scripts/dependencies.sh take
	@cargo build --quiet --release -p garret-integration --bins
	@$(driver) test $(GROUPS)

check: setup
	@scripts/dependencies.sh take
	@cargo build --quiet --release -p garret-integration --bins
	@$(driver) test lint
	@scripts/dependency-policy.sh

campaign: setup
	@scripts/build.sh >/dev/null
	@$(driver) campaign

host: setup
	@scripts/host.sh; status=$$?; exit $$status

bench: setup
	@scripts/bench.sh; status=$$?; exit $$status
