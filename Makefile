# Everything a developer or CI runs. `make up` and `make test` do all of their own set-up on a fresh Debian 12 machine.

PYTHON := .venv/bin/python
GUARD := iscsi_worker/targets/tgt_guard
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
ROWS := docs/behaviours.md
SAMPLES := etc/sanderling.conf.sample etc/policy.yaml.sample
DIAGRAMS := docs/how-it-works.md
REFERENCE := docs/reference/settings.md docs/reference/http.md docs/reference/commands.md

.PHONY: help up test hosts lab fuzz simulation mutants check longest real real-down rows sample guard python python-dev system system-real bench deb image
.DEFAULT_GOAL := help

help:
	@echo "make up      everything in one process on loopback portals: the first five minutes"
	@echo "make test    every test, on real RabbitMQ, Consul, Ceph and tgt, which it starts and stops itself; FULL=1 samples none"
	@echo "make hosts   docs/operations.md, typed as it stands on three hosts with systemd; 20 minutes, as root"
	@echo "make lab     break an installation on purpose and check that it held, 15 minutes; FULL=1 90 minutes; SCENARIO=\"F2 F5\" some"
	@echo "make fuzz    CASES=1000 made-up requests of each operation of the API, each answer held against its description"
	@echo "make simulation  10,000 simulated schedules of faults, all night; SCHEDULES=300 fewer, SEED=17 one again (docs/simulation.md)"
	@echo "make mutants     take the guards that keep data safe out, one at a time: what notices?"
	@echo "make check   style, types, import rules, generated files"
	@echo "make real    start the real parts and leave them running, so that one test runs in seconds (make real-down ends them)"
	@echo "make rows    which test proves which behaviour row, into $(ROWS)"
	@echo "make bench   the figures, each beside its baseline in the same run (bench/README.md)"
	@echo "make deb     the Debian package, into dist"
	@echo "make image   the container image made of it, as an OCI archive, into dist"
	@echo "make longest the ten longest files and functions"
	@echo "make sample  the samples of every setting and every rule, into $(SAMPLES), the diagrams in $(DIAGRAMS), and docs/reference"

system:
	@scripts/install-system up

system-real:
	@scripts/install-system real

python: system
	@scripts/install-python up

python-dev: system-real
	@scripts/install-python dev

guard: $(GUARD).so

$(GUARD).so: $(GUARD).c
	gcc -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -shared -o $@ $< -ldl -lpthread

up: python
	@exec .venv/bin/sanderling up

# A broken part fails every test that needs it, and a call that hangs in C hears no time limit: both end the run.
HUNG_S := $(if $(filter-out 0,$(FULL)),3600,900)

# Namespaces and tgtd need root. Under sudo nothing of root's is to be left in the tree.
test: python-dev
	$(ROOT) env SANDERLING_FULL_SUITE=1 SANDERLING_FULL=$(if $(filter-out 0,$(FULL)),1) PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -p no:cacheprovider --durations=10 --maxfail=20 \
		-o faulthandler_timeout=$(HUNG_S) -o faulthandler_exit_on_timeout=true

# Three containers that boot; their root is made once, from this machine's package sources.
hosts: python-dev
	@$(ROOT) scripts/install-system hosts
	$(ROOT) env PYTHON=$(PYTHON) scripts/hosts-root
	$(ROOT) env SANDERLING_HOSTS=1 PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -p no:cacheprovider -s tests/hosts

# The full run is taken up again where it was interrupted; `rm -r .lab/full` begins anew.
LAB := .lab/$(if $(filter-out 0,$(FULL)),full,quick)
lab: python-dev
	@$(if $(filter-out 0,$(FULL)),,$(ROOT) rm -rf $(LAB))
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 .venv/bin/sanderling lab run $(SCENARIO) $(if $(filter-out 0,$(FULL)),--full) --out $(LAB)

CASES ?= 200
fuzz: python-dev
	SANDERLING_FUZZ_CASES=$(CASES) PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -p no:cacheprovider -q tests/unit/test_fuzz.py

SCHEDULES := 10000
SEED :=
simulation: python-dev
	PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.simulation --schedules $(SCHEDULES) $(if $(SEED),--seed $(SEED))

mutants: python-dev
	PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.simulation.mutants

check: python-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	@scripts/generated check $(ROWS) $(SAMPLES) $(DIAGRAMS) $(REFERENCE)
	$(PYTHON) -m pytest -q tests/unit/test_house.py

real: python-dev
	@$(ROOT) $(PYTHON) -m tests.parts start .real

real-down:
	@$(ROOT) $(PYTHON) -m tests.parts stop .real

rows:
	@scripts/generated write $(ROWS)
	@cat $(ROWS)

sample:
	@scripts/generated write $(SAMPLES) $(DIAGRAMS) $(REFERENCE)

longest: python-dev
	@scripts/longest

bench: python-dev
	@$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m bench

deb: system
	@scripts/build-deb dist

image: system-real
	@$(ROOT) scripts/build-image "$$(scripts/build-deb dist)" dist/sanderling-image.tar
