# Developer verbs.  Only Python (3.11 or newer) and make are needed; each target makes the environment that it uses:
#   .venv       what a user installs: the service, without PyTorch          (make run)
#   .venv-dev   everything: training, export, load test, checks and tests   (make test, test-full, check, fmt)
# A stamp in each is newer than pyproject.toml, so that a second run starts at once and a change of dependencies installs again.
#
#   make run PORT=9000                                              another port
#   make test PYTHON=python3.13                                     another Python
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu      PyTorch without the CUDA libraries (some gigabytes) on Linux

PYTHON ?= python3
PORT ?= 8000
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
SOAK ?=

PIP := -m pip --disable-pip-version-check
RUN := .venv/bin/python
DEV := .venv-dev/bin/python
CODE := pocketqa distillation mobile_export service loadtest tests

# OpenVINO computes bf16 on x86-64 CPUs; elsewhere ONNX Runtime alone is the quicker one and the smaller install.
OPENVINO := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),openvino)
comma := ,
RUN_EXTRAS := $(if $(OPENVINO),[$(OPENVINO)])
DEV_EXTRAS := [export,report,loadtest,ray,dev$(if $(OPENVINO),$(comma)$(OPENVINO))]

.PHONY: help run test test-full check audit soak fmt clean
.DELETE_ON_ERROR:

help:
	@echo "make run        install without PyTorch and serve the bundled pair on http://127.0.0.1:$(PORT)"
	@echo "make test       the tests that need neither browser nor data"
	@echo "make test-full  the rest: browser, real data where POCKETQA_DATA names its folder, fuzzing, several processes"
	@echo "make check      lint, formatting, types, directions of import"
	@echo "make soak       100,000 requests to one service while its memory, files and threads are watched (SOAK=options)"
	@echo "make audit      ask PyPI for known vulnerabilities of what make run installs"
	@echo "make fmt        format and repair what can be repaired"
	@echo "make clean      remove the environments and caches"

run: .venv/.installed
	$(RUN) -m pocketqa serve --host 127.0.0.1 --port $(PORT)

test: .venv-dev/.installed
	$(DEV) -m pytest

test-full: .venv-dev/.installed
	$(DEV) -m pytest -m full

check: .venv-dev/.installed
	$(DEV) -m ruff check $(CODE)
	$(DEV) -m ruff format --check $(CODE)
	$(DEV) -m mypy
	$(DEV) -m pytest -q tests/test_imports.py

soak: .venv-dev/.installed
	$(DEV) -m loadtest.soak $(SOAK)

# Strict: a package that could not be asked about fails the audit, as does a service that cannot be reached.
audit: .venv/.installed .venv-dev/.installed
	$(RUN) $(PIP) freeze --exclude-editable > .venv/audited.txt
	@$(DEV) -m pip_audit --strict --no-deps --disable-pip --progress-spinner off --requirement .venv/audited.txt \
		|| { echo "make audit: NOT passed: a vulnerability is known, or not everything could be asked about; the lines above say which."; exit 1; }

fmt: .venv-dev/.installed
	$(DEV) -m ruff check --fix-only $(CODE)
	$(DEV) -m ruff format $(CODE)

clean:
	rm -rf .venv .venv-dev build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.installed: pyproject.toml
	$(call make_venv,.venv)
	$(RUN) $(PIP) install --editable ".$(RUN_EXTRAS)"
	@touch $@

# PyTorch comes first and in a step of its own: resolved together with the rest, Linux would get its CUDA build whatever TORCH_INDEX says.
.venv-dev/.installed: pyproject.toml
	$(call make_venv,.venv-dev)
	$(DEV) $(PIP) install $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(DEV) $(PIP) install --editable ".$(DEV_EXTRAS)"
	@touch $@

# $(call make_venv,DIR): a virtual environment in DIR, after a check of the version; a complete one is kept (bin/pip is what venv writes last).
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"PocketQA needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12")'
@test -x $(1)/bin/pip || $(PYTHON) -m venv --clear $(1)
endef
