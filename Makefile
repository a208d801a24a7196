# make paper trains, measures and draws everything; make help lists the rest.
PROFILE ?= digits
SEEDS   ?= 1
# Those that a job may use, not all of the machine's.
CORES   := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
DEVICE  ?= auto
# A GPU is for one run at a time.
ifeq ($(origin JOBS),undefined)
JOBS    := $(if $(filter-out cpu,$(DEVICE)),$(if $(filter paper,$(PROFILE))$(filter GPU,$(shell nvidia-smi -L 2>/dev/null)),1,$(CORES)),$(CORES))
endif
CHECKPOINT ?= 300
BUDGET  ?= 1h
CLUSTER ?=
SHARED  ?=
VENV    ?= .venv
PYTHON  ?= python3

# Not abspath, which takes a path with spaces for several.
BIN := "$(if $(filter /%,$(firstword $(VENV))),$(VENV),$(CURDIR)/$(VENV))/bin"
PLAN := results/$(PROFILE)
# uv where there is one: it downloads and unpacks at the same time.
INSTALL = $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install) --quiet --editable

# The cores are shared out between the runs that go on at the same time.
export OMP_NUM_THREADS := $(shell [ "$(JOBS)" -ge 1 ] 2>/dev/null && [ "$(JOBS)" -le $(CORES) ] && echo $$(( $(CORES) / $(JOBS) )) || echo 1)
export SOURCE_DATE_EPOCH := 1704067200
export PYTHONUTF8 := 1
# Into the virtual environment, whatever pip does elsewhere.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX

.PHONY: help setup setup-test setup-bench setup-browser setup-cluster paper benchmark tutorials targets test test-all test-faults check-paper verify bench \
        gpu-day lab test-browser lint colab clean

help:
	@echo 'make setup    install into $(VENV): a virtual environment, made when it is not there'
	@echo 'make setup-cluster  the extra that CLUSTER= needs, and its workers'
	@echo 'make paper    train every run of a profile, measure it, draw every table and figure'
	@echo 'make benchmark  the field'"'"'s methods, with their price: PROFILE=benchmark-digits of make paper; PROFILE=mnist: at 28x28'
	@echo 'make tutorials  execute the tutorials whose source is newer, for reading: figures/tutorials'
	@echo 'make lab      open the notebooks in JupyterLab'
	@echo 'make test     the tests that a change can break, in minutes'
	@echo 'make test-all the long ones too: notebooks, kills, whole papers; in chromium where there is one'
	@echo 'make test-faults  kills a paper 100 times and compares it with an undisturbed one'
	@echo 'make test-browser  JupyterLab, its sliders and the page of the paper, in chromium'
	@echo 'make lint     format and rules of the code, by ruff'
	@echo 'make check-paper  finished runs of PROFILE beside the paper'"'"'s protocol: what is equal, and what differs'
	@echo 'make verify   fresh samples from the published weights of PROFILE against its published scores'
	@echo 'make bench    training, sampling, bound and FID against other libraries; results/bench and figures/bench'
	@echo 'make gpu-day  the first hours with a GPU: tests, speed, what the paper will take, and then its runs, for BUDGET=$(BUDGET)'
	@echo 'make colab    a set-up cell and badges for Google Colab, with the address of the git remote origin'
	@echo 'make clean    delete what make paper made for PROFILE, after asking'
	@echo
	@echo 'PROFILE=$(PROFILE)  smoke, digits, small, paper-cpu, paper, ...: `python -m cldiff list`; how long: docs/running.md'
	@echo 'SEEDS=$(SEEDS)         repetitions of each run'
	@echo 'JOBS=$(JOBS)          runs at the same time'
	@echo 'DEVICE=$(DEVICE)     auto, cpu or cuda; of make test: cuda or cpu is tested, instead of the rest'
	@echo 'CHECKPOINT=$(CHECKPOINT)  seconds of training that a kill can cost, at most'
	@echo 'CLUSTER=$(CLUSTER)        address of a Dask scheduler whose workers make the runs, or local: docs/running.md'
	@echo 'SHARED=$(SHARED)         folder that all workers of the cluster have, for checkpoints'
	@echo 'VENV=$(VENV)      another environment, for example one shared between clones'

setup: $(VENV)/.installed

# Existence of the stamp decides, and whether pyproject.toml has changed since.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo 'error: $(PYTHON) cannot make a virtual environment: expected Python 3.10 or later with ensurepip; on Debian' \
	    'install python3-venv, or set PYTHON= to another one, or VENV= to an environment that is there' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	@touch $@

setup-test: $(VENV)/.installed-test

$(addprefix $(VENV)/.installed-,test cluster bench): $(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) '.[$*]'
	@touch $@

# The extra `cluster`, only where it is asked for.
setup-cluster: $(VENV)/.installed-cluster

# With CLUSTER its workers make the runs, and this machine draws: their first tasks and results are then files that are there.
paper: setup $(if $(CLUSTER),setup-cluster)
	@[ "$(JOBS)" -ge 1 ] 2>/dev/null || { echo 'error: JOBS=$(JOBS): expected an integer of at least 1' >&2; exit 1; }
	@[ -z '$(SHARED)' ] || [ -n '$(CLUSTER)' ] || { echo 'error: SHARED=$(SHARED): expected CLUSTER= too, whose workers have that folder' >&2; exit 1; }
	@$(BIN)/python -m cldiff plan $(PROFILE) --seeds $(SEEDS) --checkpoint $(CHECKPOINT) $(if $(CLUSTER),,--device $(DEVICE))
	$(if $(CLUSTER),@$(BIN)/python -m cldiff run $(PROFILE) --seeds $(SEEDS) --device $(DEVICE) --checkpoint $(CHECKPOINT) --cluster '$(CLUSTER)' $(if $(SHARED),--shared '$(SHARED)'))
	@$(MAKE) --no-print-directory -j$(JOBS) targets

benchmark:
	@$(MAKE) --no-print-directory paper PROFILE=benchmark-$(PROFILE)

# Without widgets, which a page that is only read cannot move.
TUTORIALS := $(patsubst notebooks/%,figures/tutorials/%,$(wildcard notebooks/tutorial_*.ipynb))
tutorials: $(TUTORIALS)
$(TUTORIALS): figures/tutorials/%: notebooks/% | $(VENV)/.installed
	@echo 'make    $@'
	@$(BIN)/python -m cldiff execute $< $@

# Below, only the make that `paper` starts: the plan lists FIRST_TASKS, RUNS, FIGURES and PAPER, and which run waits for
# which first task. A run is made when its result is not there, whatever the times of files say; figures are drawn again
# when a result is newer, and then the paper and its page.
ifneq ($(filter targets,$(MAKECMDGOALS)),)
include $(PLAN)/targets.mk
PAGE := $(PAPER:.ipynb=.html)
# Written whole or not at all: nothing for make to delete when it is interrupted.
.PRECIOUS: $(FIRST_TASKS) $(RUNS) $(FIGURES) $(PAPER) $(PAGE)
endif

targets: $(FIGURES) $(PAGE)
	@echo 'figures/$(PROFILE) is complete$(if $(PAGE),: open $(PAGE))' || :

$(FIGURES): $(RUNS)
$(PAPER): $(FIGURES)
$(PAGE): $(PAPER)

$(FIRST_TASKS) $(RUNS) $(FIGURES) $(PAPER) $(PAGE):
	@echo 'make    $(patsubst %/result.json,%,$@)' || :
	@$(BIN)/python -m cldiff make $(PROFILE) $@

# On a device that is named: what can be asked of a real one alone.
test: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(if $(filter auto,$(DEVICE)),-n $(CORES) --dist worksteal -m "not slow",-q --device $(DEVICE) tests/test_gpu.py)

# The long ones alone may be asked for with SLOW="-m slow".
test-all: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile $(SLOW)
	@if $(MAKE) --no-print-directory setup-browser; then $(MAKE) --no-print-directory test-browser; \
	 else echo 'no chromium to be had on this machine: the browser tests are left out'; fi

lint: setup-test
	$(BIN)/ruff format --check cldiff tests
	$(BIN)/ruff check cldiff tests

test-faults: setup-test
	$(BIN)/python tests/faults.py --profile $(PROFILE)

check-paper: setup
	@$(BIN)/python tests/check_paper.py results/$(PROFILE)

verify: setup
	@env -u OMP_NUM_THREADS $(BIN)/python -m cldiff verify results/$(PROFILE) --device $(DEVICE)

setup-bench: $(VENV)/.installed-bench

# All cores, and the profile that fits the machine unless PROFILE is given.
bench: setup-bench
	env -u OMP_NUM_THREADS $(BIN)/python tests/bench.py --device $(DEVICE) $(if $(filter command environment,$(origin PROFILE)),--profile $(PROFILE))
	$(BIN)/python -m cldiff execute notebooks/bench.ipynb figures/bench/bench.ipynb

# On this machine only and with a token, as Jupyter does by default.
# The root is the clone: links lead from notebooks to figures and docs.
lab: setup
	env -u OMP_NUM_THREADS $(BIN)/jupyter lab --ServerApp.root_dir=. notebooks/start.ipynb $(LAB_OPTIONS)

gpu-day: setup-test setup-bench
	env -u OMP_NUM_THREADS $(BIN)/python tests/gpu_day.py --budget $(BUDGET) $(if $(filter command environment,$(origin PROFILE)),--profile $(PROFILE))

setup-browser: $(VENV)/.installed-browser

# Debian's chromium where there is one; playwright's own needs a download from its makers.
$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(INSTALL) '.[browser]'
	@command -v chromium >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian' /etc/os-release \
	       && apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
	  || $(BIN)/python -m playwright install chromium \
	  || { echo 'error: no chromium: install it, as the package chromium or with "playwright install chromium"' >&2; exit 1; }
	@touch $@

test-browser: setup-browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser.py

colab: setup
	@$(BIN)/python -m cldiff colab

clean:
	@case '$(PROFILE)' in ''|*[!a-z0-9_-]*) \
	  echo "error: PROFILE='$(PROFILE)': expected the name of a profile, of which results and figures are deleted" >&2; exit 1;; esac
	@printf 'delete results/$(PROFILE) and figures/$(PROFILE)? [y/N] '; read answer; test "$$answer" = y
	rm -rf results/$(PROFILE) figures/$(PROFILE)
