# make demo   the main job, end to end, in a few minutes
# make test   ruff, mypy and the whole quick suite
# make test-slow   full grids of exporters, and the packages that our users have (Ultralytics, transformers, timm's own tests)
# make test-distributed   what takes several processes, networks and kills: minutes
# Both keep their environment in .venv; a stamp beside it makes that free when pyproject.toml has not changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
DEB    := dataset-fashion-mnist
IMAGES := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
# Nothing after the installation needs a network: a missing file is an error at once, not a retry of a minute.
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-slow test-distributed test-gpu lint data bench bench-gpu readme clean
.DEFAULT_GOAL := test

demo: .venv/.train
	@$(BIN)/python -m examples.demo

test: lint data
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-slow: .venv/.clients data
	$(BIN)/python -m pytest -q -m slow -n auto --maxprocesses 2

# Processes that are killed, joined over networks and compared to the bit; ends with a table of what was shown.
test-distributed: .venv/.test data
	$(BIN)/python -m pytest -q -m distributed

# Every test marked `gpu`, the slow and distributed ones included. Without a GPU it fails at once and says what is missing,
# since a target that tested nothing must not look green.
test-gpu: .venv/.test data
	@$(BIN)/python -m tools.gpu_suite --check
	$(BIN)/python -m pytest -q -m gpu

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# The real images of the tests and of recipes/fashion_mnist. Without them the suite skips what needs them, and nothing else.
data:
	@if [ -e $(IMAGES) ] || [ -n "$$ACMIX_DATA" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && apt-get install -y -qq $(DEB)) >/dev/null || echo "$(DEB) could not be installed; the tests that need it are skipped"; \
	else echo "Fashion-MNIST is missing; the tests that need it are skipped. To have it: sudo apt-get install $(DEB)"; fi

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.train: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train]'
	@touch $@

.venv/.test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,test]'
	@touch .venv/.train $@

.venv/.clients: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,test,clients]'
	@touch .venv/.train .venv/.test $@

# The measurements of benchmarks/, about half an hour on a quiet machine; then `make readme`.
bench: .venv/.train
	$(BIN)/python -m tools.suite benchmarks

# ACmix against plain layers and networks on a GPU, into benchmarks/gpu.csv, in nine minutes. What did not fit is listed;
# run it again to measure that.
bench-gpu: .venv/.train
	$(BIN)/python -m tools.gpu_suite

# The tables of README.md and docs/, from benchmarks/, checkpoints/*/config.json and the networks themselves.
readme: .venv/.train
	$(BIN)/python -m tools.tables README.md docs/*.md

clean:
	rm -rf runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
