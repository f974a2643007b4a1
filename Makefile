# Every command of the suite; `make help` explains them. The work itself is in Python: python -m bench, python -m data.
#
# A variable given to make, on its command line or in the environment, reaches the Python commands through the
# environment; one that is not given is not set here, because its default lives in Python.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv lock data smoke test check list run cost bench-throughput report figures doctor verify image shell container all clean
.PHONY: convnext attention-single attention-dual attention-heads attention-kinds cifar-stem scratch vit-tiny mixer-tiny
.PHONY: matched-vit fashion-mnist profile tensorboard test-reliability test-browser venv-cluster test-cluster

#: PROFILE    budget of every run (paper): paper is the study's own, mini fits two CPU cores, smoke takes seconds
#: SEEDS      seeds to run (0): SEEDS='0 1 2', SEEDS=0-9
#: DEVICE     auto, cpu, cuda or cuda:N (auto): auto takes a GPU where there is one; cuda without a GPU is an error
#: JOBS       processes that share the runs that are due (1): auto, one for each GPU, or as many as the CPU has room for; smoke: auto
#: ONLY       names or patterns of experiments (*): ONLY=cifar100/baseline, ONLY='fashion_mnist/*'
#: DATASETS   folder of the data sets (datasets)
#: RESULTS    folder of records, checkpoints and curves (results)
#: WEIGHTS    file of pretrained weights to use instead of ImageNet-1k's ()
#: DEPTHWISE  how depthwise and patch convolutions and attention are computed (auto): auto, the fastest measured here; reference
#: COMPILE    torch.compile (auto): auto, where it pays for its warm-up; on, off
#: CUDA_GRAPH one launch for a whole training step on CUDA (auto): auto, yes; on, off
#
#= LAUNCHER   all, run and the families: slurm submits one job array over the runs that are due (local). With it PARTITION,
#=            GPUS of a task (1), PARALLEL tasks at a time (8), TIME_LIMIT in minutes until a task is requeued (240),
#=            SBATCH='option=value ...' for sbatch, TASK_PYTHON, which starts Python in a container
#= FROM       data: folders to take downloaded archives from, without the network: FROM='dir1 dir2'
#= TESTS      test, test-reliability: the test files or folders (tests; those of reliability)
#= FUZZ       test-reliability: how many times as many inputs to the readers as in `make test` (4)
#= PORT       tensorboard: where it listens, on this machine alone (6006)
#= QUICK      bench-throughput: QUICK=1 measures the loops and two networks only, into a file of its own
#= IMAGES     figures, all: IMAGES=none leaves test images out of the attention maps, for a ledger that is published
#= UPGRADE    lock: UPGRADE=1 moves every package to its newest release
#= TARGET     container: the targets to make inside: TARGET=all
#= GPUS       container, shell: which GPUs (all): GPUS=device=0,1; GPUS=none on a machine without one
#= DOCKER     container, shell, image: the engine (docker); DOCKER_FLAGS adds flags to its run,
#=            as in DOCKER=podman DOCKER_FLAGS=--userns=keep-id
#= IMAGE      container, shell, image: the name (convnext-attention-bench); BASE_IMAGE builds it on another base
DOCKER ?= docker
GPUS ?= all
IMAGE ?= convnext-attention-bench
# A folder as Python takes it: the shell leaves a ~ within quotes, and some a ~ behind an equals sign, as it is.
folder = $(patsubst ~/%,$(HOME)/%,$(1))
LEDGER = $(call folder,$(or $(RESULTS),results))
# The value of a variable that may be unset or one of some words.
one_of = $(if $(filter-out $(2),$($(1))),$(error $(1): expected one of $(2), found '$($(1))'),$($(1)))

# The active virtual environment, as in the image; nothing is installed into it. Without one, and where .venv itself is
# the active one, .venv.
ifneq ($(filter-out $(CURDIR)/.venv,$(VIRTUAL_ENV)),)
BIN := $(VIRTUAL_ENV)/bin
INSTALLED :=
else
BIN := .venv/bin
INSTALLED := .venv/.complete
endif
PYTHON := $(BIN)/python

help:  ## Print this help
	@echo 'make TARGET [VARIABLE=value ...]'
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Variables, also read from the environment by `python -m bench` (default in parentheses):'
	@echo
	@sed -n 's/^#: /  /p' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Variables of one target:'
	@echo
	@sed -n 's/^#= /  /p' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED)  ## Install the locked packages into .venv (nothing to do in an active environment)

# The stamp is the last thing written: an interrupted installation is taken up again. A folder whose pip does not load
# was interrupted earlier, or its Python is gone or of another version: it is made anew. pip would compile the 12,000
# Python files one by one; all cores together, without the packages' own tests, take 44 s less where there are two slow ones. Some
# files are of no Python 3 and do not compile, which pip passes over as well.
SUPPORTED = (3, 11) <= sys.version_info < (3, 14)
.venv/.complete: requirements.lock requirements-dev.lock
	@rm -f $@
	@$(PYTHON) -c 'import pip, sys; sys.exit(not $(SUPPORTED))' 2>/dev/null || { \
	    for python in python3 python3.13 python3.12 python3.11 false; do \
	        $$python -c 'import ensurepip, sys, venv; sys.exit(not $(SUPPORTED))' 2>/dev/null && break; \
	    done; \
	    [ $$python != false ] || { echo '$(NO_PYTHON)' >&2; exit 2; }; \
	    $$python -m venv --clear .venv; }
	@echo 'Installing requirements.lock and requirements-dev.lock into .venv (5 GB on disk, some minutes)'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --use-pep517 --no-compile --require-hashes -r requirements.lock -r requirements-dev.lock
	@$(PYTHON) -m compileall -qq -j 0 -x '/(tests?|testing|benchmarks)/' .venv/lib || true
	@touch $@
NO_PYTHON = make venv: expected Python 3.11 to 3.13 with its venv module, found none; \
    install one (Debian, Ubuntu: python3 and python3-venv) or activate an environment

# The locks that exist are uv's first choice, so that nothing moves without a reason. The second rests on the first.
# The header names this target rather than uv's own command line, which would carry the flags of one machine.
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
    --custom-compile-command 'make lock' $(if $(filter-out 0,$(call one_of,UPGRADE,0 1)),--upgrade)
lock: $(INSTALLED)  ## Write the .lock files from their .in files
	$(UV_COMPILE) requirements.in -o requirements.lock
	$(UV_COMPILE) requirements-dev.in -o requirements-dev.lock
	$(UV_COMPILE) requirements-cluster.in -o requirements-cluster.lock

DATA = $(PYTHON) -m data $(addprefix --from ,$(FROM)) $(if $(WEIGHTS),--no-weights)
data: $(INSTALLED)  ## Download, verify and prepare the data sets (FROM='dir ...' takes archives from there)
	$(DATA)

# After a grid with failed runs (status 1) the report is written too, and the failure is still make's. Figures come first,
# because the report shows them; $(1) is the command that draws them, where they are wanted. SIGTERM may come to make and its
# shell alone, which would die and leave the grid: the shell passes it on and waits for the checkpoint. Ctrl-C comes to all.
GRID_AND_REPORT = $(PYTHON) -m bench grid & grid=$$!; trap 'kill -TERM $$grid' TERM; trap : INT; \
	while status=0; wait $$grid || status=$$?; kill -0 $$grid 2>/dev/null; do :; done; \
	[ $$status -gt 1 ] || { $(if $(1),$(1) || status=$$?;) $(PYTHON) -m bench report || status=$$?; }; \
	exit $$status

# Its batches of 50 are too small to fill the cores: a process for each takes 0.84 of the time on two.
smoke: $(INSTALLED)  ## Every family end to end in minutes, on the tiny data in the repository; no network
	@rm -rf -- "$(LEDGER)/smoke"
	@export PROFILE=smoke RESULTS="$(LEDGER)/smoke" JOBS="$${JOBS:-auto}"; $(call GRID_AND_REPORT)

# Two at a time: most tests compute on one thread, and many wait for processes that import torch.
test: $(INSTALLED)  ## Run the tests
	$(PYTHON) -m pytest $(or $(TESTS),--numprocesses 2 --dist worksteal tests)

venv-cluster: $(INSTALLED)  ## Install what LAUNCHER=slurm needs on top, into the same environment
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-cluster.lock

test-cluster: venv-cluster  ## The grid on a real Slurm that this starts on loopback; needs root and Debian's slurm packages
	TEST_CLUSTER=1 $(PYTHON) -m pytest -rs tests/cluster

RELIABILITY = tests/reliability tests/test_fuzz.py tests/data/test_fuzz.py tests/test_verify.py tests/test_verify_surroundings.py \
    tests/test_ledger.py tests/test_train.py
# Whatever tries to lose, double or falsify a result, and what it tried: kills, faults, garbage.
test-reliability: $(INSTALLED)  ## Run the tests that kill, fill disks and feed garbage, at length (25 minutes on two cores)
	FUZZ=$(or $(FUZZ),4) $(PYTHON) -m pytest -p tests.tally -m '' $(or $(TESTS),$(RELIABILITY))

test-browser: $(INSTALLED)  ## Test report.html in headless Chromium (Debian: chromium, chromium-driver); skipped where there is none
	$(PYTHON) -m pytest -rs tests/browser

check: $(INSTALLED)  ## Format, lint and types; the Dockerfile, the CI script and the locks
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m ruff check
	$(PYTHON) -m mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run
	$(PYTHON) -m pytest tests/test_lock.py

list: $(INSTALLED)  ## The experiments of the study
	$(PYTHON) -m bench list

run: $(INSTALLED)  ## Train and evaluate the experiments that ONLY names
	@$(if $(ONLY),,echo 'make run: expected ONLY, as in `make run ONLY=cifar100/baseline SEEDS=0`; `make list` shows the names' >&2; exit 2)
	$(PYTHON) -m bench grid

# The study by families, each of them a part of `all`: which experiments, by their names in the catalog.
FAMILY = ONLY='$(1)' $(PYTHON) -m bench grid

convnext: $(INSTALLED)  ## ConvNeXt-Tiny without attention: the baselines, and their controls under each regime
	$(call FAMILY,*/baseline*)

attention-single: $(INSTALLED)  ## One gated attention block at P2 or P3 under each regime (E1 to E6)
	$(call FAMILY,cifar100/E?_*)

attention-dual: $(INSTALLED)  ## Two gated attention blocks (A)
	$(call FAMILY,cifar100/A_dual)

attention-heads: $(INSTALLED)  ## Two blocks with 1, 2, 4 or 8 heads (B)
	$(call FAMILY,cifar100/B_heads?)

attention-kinds: $(INSTALLED)  ## Self-attention, SE, ECA, CBAM and spatial attention at P3 (C)
	$(call FAMILY,cifar100/C_*)

cifar-stem: $(INSTALLED)  ## Fine-tuning with the CIFAR stem, with and without attention
	$(call FAMILY,cifar100/stem_*)

scratch: $(INSTALLED)  ## ConvNeXt-Tiny from random weights, with and without attention
	$(call FAMILY,cifar100/scratch_convnext* cifar100/scratch_dual)

vit-tiny: $(INSTALLED)  ## ViT-Tiny from random weights
	$(call FAMILY,cifar100/scratch_vit_tiny)

mixer-tiny: $(INSTALLED)  ## Mixer-Tiny from random weights
	$(call FAMILY,cifar100/scratch_mixer_tiny)

matched-vit: $(INSTALLED)  ## A ViT with ConvNeXt-Tiny's number of parameters, beside ConvNeXt-Tiny
	$(call FAMILY,cifar100/matched_*)

fashion-mnist: $(INSTALLED)  ## Every experiment on Fashion-MNIST
	$(call FAMILY,fashion_mnist/*)

cost: $(INSTALLED)  ## Parameters, multiply-adds and attention maps of every network
	@$(PYTHON) -m bench cost

bench-throughput: $(INSTALLED)  ## Images per second of every network, and of our loop beside others (QUICK=1: fewer)
	$(PYTHON) -m bench throughput $(if $(filter-out 0,$(call one_of,QUICK,0 1)),--quick)

# The profiler's library tells of its own start and stop, and of every allocation older than its recording.
profile: $(INSTALLED)  ## Where the time of a training step goes: traces and a summary, for ONLY or one network of each kind
	@KINETO_LOG_LEVEL=99 TORCH_CPP_LOG_LEVEL=ERROR $(PYTHON) -m bench profile

tensorboard: $(INSTALLED)  ## Show the training curves and the profiler's traces in a browser on this machine
	@case '$(or $(PORT),6006)' in *[!0-9]*) echo "make tensorboard: expected a number as PORT, found '$(PORT)'" >&2; exit 2;; esac
	$(BIN)/tensorboard --logdir "$(LEDGER)" --host localhost --port $(or $(PORT),6006)

report: $(INSTALLED)  ## Write RESULTS.md, report.html, results.csv and results.json from the ledger
	$(PYTHON) -m bench report

FIGURES = $(PYTHON) -m bench figures$(if $(call one_of,IMAGES,none), --without-images)
figures: $(INSTALLED)  ## Draw the ledger's figures into its folder figures, as SVG and PNG
	$(FIGURES)

doctor: $(INSTALLED)  ## Look at this machine: what is missing, and what to do
	@$(PYTHON) -m bench doctor

verify: $(INSTALLED)  ## Check again that records, report, locks and data are undamaged
	@$(PYTHON) -m bench verify

all: $(INSTALLED)  ## Data, every run that is due, figures, report
	$(if $(filter smoke,$(PROFILE)),,$(DATA))
	@$(call GRID_AND_REPORT,$(FIGURES))

# The sources whose change makes a record's commit "dirty"; bench/environment.py has the same list.
SOURCES = bench models data requirements.lock
COMMIT = $(shell git rev-parse --quiet --verify HEAD 2>/dev/null)$(if $(shell git status --porcelain -- $(SOURCES) 2>/dev/null),-dirty)

image:  ## Build the container image
	$(DOCKER) build --tag $(IMAGE) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE="$(BASE_IMAGE)") --build-arg BENCH_COMMIT="$(COMMIT)" .

# The container writes to the two mounted folders, as the user who started it, and nowhere else. It has a network only
# for the targets that download.
absolute = $(if $(word 2,$(1)),$(error $(1): expected a path without spaces, which a mount cannot carry),$(abspath $(1)))
TTY = $(if $(MAKE_TERMOUT),$(shell test -t 0 && echo --interactive --tty))
DATA_FOLDER = $(call absolute,$(call folder,$(or $(DATASETS),datasets)))
RESULTS_FOLDER = $(call absolute,$(LEDGER))
# All that is documented but what is mounted, what is about the container itself, and what cannot work in it: there is no
# Slurm (LAUNCHER), the locks are read-only (UPGRADE), and nobody outside reaches a port (PORT).
GIVEN_INSIDE = PROFILE SEEDS DEVICE JOBS ONLY DEPTHWISE COMPILE CUDA_GRAPH TESTS FUZZ QUICK IMAGES
# Docker reads this as a line of CSV: several devices, with a comma between them, want quotes of their own.
comma := ,
as_csv = $(if $(findstring $(comma),$(1)),'"$(1)"',"$(1)")
CONTAINER = $(strip $(DOCKER) run --rm --init $(TTY) --user "$$(id -u):$$(id -g)" \
    $(if $(filter none,$(GPUS)),,--gpus $(call as_csv,$(GPUS))) --ipc=host $(if $(filter data all,$(TARGET)),,--network none) \
    --volume "$(CURDIR):/bench:ro" --volume "$(DATA_FOLDER):/datasets" --volume "$(RESULTS_FOLDER):/results" \
    $(foreach name,$(GIVEN_INSIDE),$(if $($(name)),--env $(name)="$($(name))")) \
    $(if $(WEIGHTS),--volume "$(call absolute,$(WEIGHTS)):/weights/$(notdir $(WEIGHTS)):ro" --env WEIGHTS="/weights/$(notdir $(WEIGHTS))") \
    $(if $(FROM),$(foreach folder,$(abspath $(FROM)),--volume "$(folder):$(folder):ro") --env FROM="$(abspath $(FROM))") \
    --env BENCH_COMMIT="$(COMMIT)" $(DOCKER_FLAGS) $(IMAGE))
# An engine would make what is missing, as root, and mount it empty.
BEFORE_CONTAINER = command -v $(firstword $(DOCKER)) >/dev/null || \
	    { echo 'make: expected the engine $(firstword $(DOCKER)), found none; install it, or set DOCKER to another' >&2; exit 2; }; \
	mkdir -p "$(DATA_FOLDER)" "$(RESULTS_FOLDER)"; \
	for path in $(WEIGHTS) $(FROM); do \
	    [ -e "$$path" ] || { echo "make: expected a file or folder to mount, found none: $$path" >&2; exit 2; }; \
	done; \
	$(DOCKER) image inspect $(IMAGE) >/dev/null 2>&1 || \
	    { echo 'make: expected the image $(IMAGE), found none; run `make image` first' >&2; exit 2; }

shell:  ## Open a shell in the container
	@$(BEFORE_CONTAINER)
	$(CONTAINER) bash

container:  ## Make TARGET inside the container
	@[ -n "$(TARGET)" ] || { echo 'make container: expected TARGET, as in `make container TARGET=all`; `make help` shows the targets' >&2; exit 2; }
	@$(BEFORE_CONTAINER)
	$(CONTAINER) make $(TARGET)

clean:  ## Remove .venv, caches and smoke results; never data or the ledger
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build "$(LEDGER)/smoke"
	find bench models data tests -name __pycache__ -type d -prune -exec rm -rf {} +
