# Every target makes what it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Relative, so that a path with spaces does no harm.
PY := $(VENV)/bin/python
PIP_ARGS ?=

# A GPU machine takes the build of torch that pip finds for it; others the pinned one.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
CONSTRAINTS := -c constraints.txt $(if $(HAS_GPU),,-c constraints-cpu.txt)

export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1

.PHONY: help install clients check test test-cluster faults demo pareto learned-reward hindsight rounds align bench gpu soak lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## virtual environment with everything the other targets need

# torch goes first: asked for by another package, pip would take the newest build, with CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) (a few minutes)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check $(CONSTRAINTS) $(PIP_ARGS) torch numpy
	@$(PY) -m pip install -q --disable-pip-version-check $(CONSTRAINTS) $(PIP_ARGS) -e '.[dev]'
	@touch $@

clients: $(VENV)/clients/.installed  ## lm-eval and others whose requirements do not fit ours, in a folder of their own

$(VENV)/clients/.installed: tests/clients.txt | install
	@echo "installing clients into $(VENV)/clients"
	@rm -rf $(VENV)/clients
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps $(PIP_ARGS) --target $(VENV)/clients -r tests/clients.txt
	@touch $@

check: install  ## format, lint, types, Dockerfile
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/hadolint Dockerfile

# In two processes: much of a test's time goes into waiting for Ray's processes to start. Threads of several processes
# that compute on two cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

test: check  ## unit tests, and the tests that share one local Ray
	$(PYTEST) tests/unit
	$(PYTEST) tests/local

# Without a package registry the tests of these clients are skipped, and say so.
test-cluster: install  ## several Ray nodes, kills, real clients, browser
	@$(MAKE) --no-print-directory clients || echo "no clients: their tests will be skipped"
	$(PYTEST) --no-loadscope-reorder tests/cluster

faults: install  ## campaigns of many kills: at every write, and at random moments
	$(PYTEST) -m faults tests

demo: install  ## the whole story on the standard library's own code
	$(PY) -m jobs.demo --output out/demo

pareto: install  ## the six objectives on the demo's corpus: misalignment against KL (half an hour on 2 cores)
	$(PY) -m jobs.pareto --output out/demo

learned-reward: install  ## a reward learned from 3,000 noisy comparisons in place of the scorer (ten minutes after make demo)
	$(PY) -m jobs.learned_reward --output out/demo

hindsight: install  ## Chain of Hindsight on comparisons of code: good and bad code on demand (seven minutes on 2 cores)
	$(PY) -m jobs.hindsight --output out/demo

rounds: install  ## best of n, expert iteration, RLOO and PPO against the demo's model, on prompts that no round saw
	$(PY) -m jobs.rounds --output out/demo

align: install  ## best of n, DPO, RLOO, PPO and others from the labels of annotators who err, and over-optimisation
	$(PY) -m jobs.align --output out/demo

bench: clients  ## benchmarks: ratios to references measured in the same run
	$(PY) -m benchmarks

gpu: install  ## the benchmarks that need an accelerator; says so where there is none
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(PY) -m benchmarks.bench_objectives --parts gpu && $(PY) -m benchmarks.bench_score toxicity; \
	else echo "skipped: torch finds no GPU on this machine"; fi

soak: install  ## five minutes of serving at saturation: nothing lost, memory flat
	$(PY) -m benchmarks.soak

lock: install  ## renew constraints.txt from what is installed
	@( head -n 1 constraints.txt; $(PY) -m pip freeze --exclude-editable \
	  | grep -v -i -E '^(torch|wheel|setuptools|pip)( |=|@)' | grep -v '@ ' ) > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the environment and all output
	rm -rf $(VENV) out
