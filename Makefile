# `make run-all` sets everything up and starts it; `make test` sets up and tests; `make help` lists the rest.
#
# Each step of the set-up leaves a stamp in .venv/.set-up when it is complete. A second start finds the stamps and does
# nothing; an interrupted one goes on where it stopped. Everything that pip says is kept in .venv/.set-up/log.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= # the interpreter to make .venv with; empty: the first of python3 python3.12 python3.13 python3.11 that will do
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4))) # test files that run side by side
ARGS ?=   # more arguments for the program behind a target: make test ARGS="-k journal"
W ?=      # a process of the table: make restart W=transcriber
N ?= 200  # how many faults, and for which seeds (empty: one is drawn): make faults N=200 SEED="1 2 3"
SEED ?=

BIN := .venv/bin
DONE := .venv/.set-up
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# Virtual environments do not move: in a moved or copied folder, or when its Python has gone, it is made anew.
PLACE := $(shell [ -x $(BIN)/python ] && cat $(DONE)/place 2>/dev/null)
ifneq ($(PLACE),$(CURDIR))
.PHONY: $(DONE)/place
endif

define FUNCTIONS
say() { printf '%s\n' "set-up: $$*"; }

# pip's output as one moving line on a terminal, else one line for each download of more than 10 MB.
calm() {
  local line what= done total count=0
  while IFS= read -r line; do
    case $$line in
      Progress\ *\ of\ *)
        read -r _ done _ total <<<"$$line"
        [ ! -t 1 ] || [ "$$total" -lt 1000000 ] ||
          printf '\r\033[K  %d packages · %s %d of %d MB' $$count "$$what" $$((done / 1000000)) $$((total / 1000000))
        continue ;;
    esac
    printf '%s\n' "$$line" >>$(DONE)/log
    case $$line in
      *Downloading\ *\ \(*\)* | *Using\ cached\ *\ \(*\)* | *Processing\ *)
        what=$${line##*/}; what=$${what#*Downloading }; what=$${what#*Using cached }; count=$$((count + 1))
        [[ ! $$what =~ ^([A-Za-z0-9_.]+-[^-]+)(-[^ ]*)?(\ \([0-9.]+\ .B\))? ]] || what=$${BASH_REMATCH[1]}$${BASH_REMATCH[3]-}
        if [ -t 1 ]; then printf '\r\033[K  %d packages · %.60s' $$count "$$what"
        elif [[ $$line == *[0-9][0-9].[0-9]\ MB* || $$line == *[0-9][0-9][0-9]\ MB* ]]; then say "  $$what"; fi ;;
      *Installing\ collected\ packages*)
        count=$$(tr -cd , <<<"$$line" | wc -c); count=$$((count + 1))
        if [ -t 1 ]; then printf '\r\033[K  installing %d packages' $$count; else say "  installing $$count packages"; fi ;;
    esac
  done
  [ ! -t 1 ] || printf '\r\033[K'
}

# A killed pip leaves packages that look installed: those whose record was not finished are forgotten first.
heal() {
  local info
  for info in .venv/lib/python3*/site-packages/*.dist-info; do
    if [ -d "$$info" ] && ! grep -qs INSTALLER "$$info/RECORD"; then rm -rf "$$info"; fi
  done
  rm -rf .venv/lib/python3*/site-packages/~*
}

install() { # what it is, for people; then pip's arguments
  local what=$$1; shift
  say "$$what"
  mkdir -p $(DONE)
  printf '\n== %s %s\n' "$$(date)" "$$what" >>$(DONE)/log
  heal
  if ! $(BIN)/python -m pip install --progress-bar raw -c constraints.txt "$$@" 2>&1 | calm; then
    say "$$what: $$(grep -a ERROR: $(DONE)/log | tail -n 1 | cut -c -200) (details: $(DONE)/log; the same command goes on from here)"
    exit 1
  fi
}

as_root() { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() { # Debian packages, when root; the index is fetched only if a package is not in it
  local apt=(apt-get -o DPkg::Lock::Timeout=120 -y -qq --no-install-recommends install "$$@")
  export DEBIAN_FRONTEND=noninteractive
  say "system packages: $$*"
  mkdir -p $(DONE)
  "$${apt[@]}" >>$(DONE)/log 2>&1 || { apt-get -qq update >>$(DONE)/log 2>&1 && "$${apt[@]}" >>$(DONE)/log 2>&1; }
}

set_up() { [ "$(PLACE)" = "$(CURDIR)" ] && [ -x $(BIN)/swapscribe ] || { echo "swapscribe: not set up yet; start with: make run-all" >&2; exit 2; }; }
named() { [ -n "$(W)" ] || { echo "swapscribe: say which process: make $@ W=transcriber ($$($(BIN)/swapscribe names 2>/dev/null || echo 'make status lists them'))" >&2; exit 2; }; }
endef

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

.PHONY: run-all
run-all: $(DONE)/packages $(DONE)/mic $(DONE)/gpu model-files ## set up what is missing, start everything, print captions; Ctrl-C stops it
	@exec $(BIN)/swapscribe run-all $(ARGS)

.PHONY: test
test: $(DONE)/packages $(DONE)/test-packages $(DONE)/cpwer $(DONE)/mic model-files test-data ## set up what is missing and run all tests
	@exec $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

.PHONY: faults
faults: $(DONE)/packages $(DONE)/test-packages model-files ## inflict N faults on a live stream for each SEED, check everything, write docs/faults.md
	@exec $(BIN)/python -m tests.faults.scorecard --faults $(N) --keep data/faults --seed $(SEED) $(ARGS)

.PHONY: demo
demo: $(DONE)/packages $(DONE)/cpwer model-files ## play the bundled meeting through everything, with a scorecard; ends by itself
	@exec $(BIN)/swapscribe demo $(ARGS)

.PHONY: status tail stop
status: ## what runs, how late it is, what is covered
tail: ## follow the captions
stop: ## stop everything gracefully
status tail stop:
	@$(FUNCTIONS)
	set_up; exec $(BIN)/swapscribe $@ $(ARGS)

.PHONY: restart run
restart: ## stop one process and let the launcher start it again: make restart W=transcriber
run: ## take one process over in this terminal (for a debugger): make run W=transcriber
restart run:
	@$(FUNCTIONS)
	set_up; named; exec $(BIN)/swapscribe $@ $(W) $(ARGS)

.PHONY: models
models: $(DONE)/packages ## fetch and verify the models of the embedded set
	@exec $(BIN)/swapscribe models fetch

.PHONY: model-files
model-files: $(DONE)/packages # the same, silent about what is there already
	@$(BIN)/swapscribe models fetch | sed -u '/: is there (/d'

.PHONY: test-data
test-data: $(DONE)/test-packages
	@exec $(BIN)/python -m tests.speech

.PHONY: mic
mic: $(DONE)/packages ## try again to install microphone support
	@rm -f $(DONE)/mic
	exec $(MAKE) --no-print-directory $(DONE)/mic

.PHONY: lint
lint: $(DONE)/packages $(DONE)/test-packages $(DONE)/dev-packages ## ruff, mypy --strict, import rules
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: clean
clean: ## remove the environment and all tools' caches; recordings, journal (data/) and models stay
	@[ ! -x $(BIN)/swapscribe ] || $(BIN)/swapscribe stop >/dev/null 2>&1 || true
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache swapscribe.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up -----------------------------------------------------------------------------------------------------

CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.12 python3.13 python3.11)
GOOD_PYTHON = $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
NO_PYTHON = Python 3.11 or newer is needed and none of these is one: $(CANDIDATES). \
	Install it, or name it: make run-all PYTHON=python3.12
NO_VENV = This Python cannot make virtual environments: install $(VENV_PACKAGE) (apt-get install $(VENV_PACKAGE)) and start again
VENV_PACKAGE = $(shell "$(GOOD_PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')

$(DONE)/place:
	@$(if $(GOOD_PYTHON),,$(error $(NO_PYTHON)))$(FUNCTIONS)
	python="$(GOOD_PYTHON)"
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
	  if ! as_root || ! apt_install "$(VENV_PACKAGE)"; then echo "set-up: $(NO_VENV)" >&2; exit 2; fi
	fi
	say "Python environment in .venv (Python $$("$$python" -c 'import platform; print(platform.python_version())'))"
	clear=
	who() { "$$1" -c 'import sys; print(sys.base_prefix, *sys.version_info)' 2>/dev/null || echo none; }
	# One that is there without a stamp was interrupted, and is gone on with; if another Python made it, it is no use.
	if [ -e $@ ] || { [ -e .venv ] && [ "$$(who $(BIN)/python)" != "$$(who "$$python")" ]; }; then clear=--clear; fi
	"$$python" -m venv $$clear .venv && $(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
	mkdir -p $(DONE)
	heal
	$(BIN)/python -m pip install -q -c constraints.txt pip >>$(DONE)/log 2>&1 || { say "pip cannot get even itself from a package index: is there a network? Details: $(DONE)/log"; exit 1; }
	printf '%s\n' "$(CURDIR)" >$@

$(DONE)/packages: $(DONE)/place pyproject.toml constraints.txt
	@$(FUNCTIONS)
	install "packages, 1 of 2: PyTorch (large: minutes on a slow line)" torch
	install "packages, 2 of 2: everything else" -e .
	touch $@

$(DONE)/test-packages: $(DONE)/packages
	@$(FUNCTIONS)
	install "packages for the tests" -e '.[test]'
	touch $@

$(DONE)/scores: $(DONE)/packages
	@$(FUNCTIONS)
	install "packages for the demo's scorecard" -e '.[scores]'
	touch $@

# Optional: it comes as source. Whatever happens here is one line, tried once.
$(DONE)/cpwer: $(DONE)/scores
	@$(FUNCTIONS)
	(install "package for word errors by speaker" -e '.[cpwer]') || say "word errors by speaker: cannot be counted (a C compiler is needed), everything else can"
	touch $@

$(DONE)/dev-packages: $(DONE)/packages
	@$(FUNCTIONS)
	install "packages for lint" -e '.[dev]'
	touch $@

# Optional, and only where there is an NVIDIA card: 4-bit weights. Whatever happens here is one line, tried once.
$(DONE)/gpu: $(DONE)/packages
	@$(FUNCTIONS)
	if [ -e /dev/nvidiactl ]; then
	  (install "packages for 4-bit weights (an NVIDIA card is here)" -e '.[gpu]') || say "4-bit weights: not available, everything else is"
	fi
	touch $@

# Optional: whatever happens here is one line, is tried once, and nothing else waits for it.
$(DONE)/mic: $(DONE)/packages
	@$(FUNCTIONS)
	works() { $(BIN)/python -c 'import pyaudio' 2>>$(DONE)/log; }
	try() { heal; $(BIN)/python -m pip install -q -c constraints.txt PyAudio >>$(DONE)/log 2>&1 && works; }
	debian="portaudio19-dev gcc python3-dev"
	say "microphone support (optional)"
	if works || try || { as_root && apt_install $$debian && try; }; then :
	else say "microphone: not available, everything else is. To get it: sudo apt-get install $$debian && make mic"; fi
	touch $@
