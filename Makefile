# make demo               fine-tune a pretrained network and compare it with training from scratch, in a few minutes
# make demo-segment       train a segmenter on scenes of handwritten digits, in a few minutes
# make demo-detect        train a detector on microscope images of blood cells, in a few minutes
# make test               ruff, mypy and the quick tests
# make test-slow          long tests, also of other packages that use the networks (Ultralytics, transformers, timm's tests)
# make test-app           the web page in Chromium, which it needs (Debian: apt-get install chromium)
# make test-distributed   tests with several processes, networks and kills
# make test-gpu           tests that need a GPU
# make bench, bench-gpu   measure the tables of benchmarks/
# make readme             write the generated tables of README and docs, and the pictures of docs/evidence.md
# make docs               build the documentation site into site/
#
# All targets install into .venv. A stamp file in it skips the installation until pyproject.toml changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
DEB    := dataset-fashion-mnist
IMAGES := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
# Only the installation needs a network. Offline, a missing file is an error at once instead of after a minute of retries.
export HF_HUB_OFFLINE = 1

.PHONY: demo demo-segment demo-detect test test-slow test-app test-distributed test-gpu lint data bench bench-gpu readme docs clean
.DEFAULT_GOAL := test

demo: .venv/.train
	@$(BIN)/python -m examples.demo

demo-segment: .venv/.segment
	@$(BIN)/python -m examples.demo_segment

demo-detect: .venv/.detect
	@$(BIN)/python -m examples.demo_detect

test: lint data
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-slow: .venv/.clients data
	$(BIN)/python -m pytest -q -m slow -n auto --maxprocesses 4 --dist worksteal

# gradio limits the version of Pillow, so that installing it may replace a newer one in .venv.
test-app: .venv/.app
	$(BIN)/python -m pytest -q -m slow tests/app

# Tests that kill processes, connect them over networks and compare their results bit by bit. Ends with a table of results.
test-distributed: .venv/.test data
	$(BIN)/python -m pytest -q -m distributed

# All tests marked `gpu`, including slow and distributed ones. Without a GPU this fails at once and says what is missing,
# so that a run that tested nothing does not look successful.
test-gpu: .venv/.test data
	@$(BIN)/python -m tools.gpu_suite --check
	$(BIN)/python -m pytest -q -m gpu

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

# The real images for the tests and for recipes/fashion_mnist. Without them, only the tests that need them are skipped.
data:
	@if [ -e $(IMAGES) ] || [ -n "$$ACMIX_DATA" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && apt-get install -y -qq $(DEB)) >/dev/null || echo "Could not install $(DEB). The tests that need it are skipped."; \
	else echo "Fashion-MNIST is missing. The tests that need it are skipped. To install it: sudo apt-get install $(DEB)"; fi

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.train: pyproject.toml | .venv/bin/python
	@echo "Installing the package and what it needs into .venv. This takes minutes, and is done only once."
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train]'
	@touch $@

.venv/.segment: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,segment]'
	@touch .venv/.train $@

.venv/.detect: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,detect]'
	@touch .venv/.train $@

.venv/.test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,segment,detect,export,test]'
	@touch .venv/.train .venv/.segment .venv/.detect $@

.venv/.app: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,segment,detect,export,test,browser]'
	@touch .venv/.train .venv/.segment .venv/.test $@

.venv/.clients: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,segment,detect,export,test,clients,docs]'
	@touch .venv/.train .venv/.segment .venv/.detect .venv/.test .venv/.docs $@

.venv/.docs: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@

# Measures benchmarks/ on a CPU, on a quiet machine. Run `make readme` afterwards.
bench: .venv/.train
	$(BIN)/python -m tools.suite benchmarks

# Measures ACmix against plain layers and networks on a GPU into benchmarks/gpu.csv, for nine minutes. It lists what is
# missing then. Run it again to measure the rest.
bench-gpu: .venv/.train
	$(BIN)/python -m tools.gpu_suite

# Writes the tables of the READMEs and docs/ from benchmarks/, checkpoints/*/config.json and the networks themselves, and
# draws the comparison and the fine-tuning study of docs/evidence.md from their rows in benchmarks/.
readme: .venv/.train
	$(BIN)/python -m tools.tables README.md README.zh-CN.md docs/*.md
	$(BIN)/python -m tools.evidence docs/images

# The site loads nothing from the internet. To read it: python -m http.server -d site
docs: .venv/.docs
	@$(BIN)/python -m tools.build_docs site

clean:
	rm -rf runs dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
