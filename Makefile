# `make demo` shows what mcpmq does on a real model; `make test` is what a change must pass; `make readers` has artifacts
# loaded by readers that do not install beside mcpmq, `make transformers-js` by transformers.js.
PYTHON ?= python3
BIN := .venv/bin
# Two busy processes with spinning threads slow one another down eightfold.
export OMP_WAIT_POLICY := passive

.PHONY: setup demo gate test lint types layers unit docs least-runtime transformers-js readers readme clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

SETS := --calibration calibration/starter --on calibration/heldout
CONVERT := $(BIN)/mcpmq convert calibration/reference
demo: setup
	$(CONVERT) build/demo/int4 --bits 4 --format gguf --format onnx $(SETS) > /dev/null
	$(CONVERT) build/demo/int8 --bits 8 --format onnx $(SETS) > /dev/null
	$(CONVERT) build/demo/best --recipe calibrated-quality-int4 --format gguf $(SETS) > /dev/null
	$(BIN)/mcpmq report build/demo/int4 build/demo/int8 build/demo/best

GATE := --gate benchmarks/gate/gate.toml --baseline benchmarks/gate/baseline.json
gate: setup
	$(CONVERT) build/gate --recipe calibrated-quality-int4 --format gguf $(SETS) > /dev/null
	$(BIN)/mcpmq check build/gate $(GATE) --artifact build/gate/gguf --html build/gate/report.html

test: lint types layers unit docs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --quiet

# The oldest ONNX Runtime that the graphs are written for, in the place of the pinned one.
LEAST := build/onnxruntime-1.24.4
least-runtime: setup
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(LEAST) onnxruntime==1.24.4
	PYTHONPATH=$(LEAST) $(BIN)/pytest --quiet tests/formats tests/runners/test_onnx.py tests/runners/test_fake_quant.py

# Artifacts loaded by transformers.js in Node, with an image. Scripts of packages, which fetch more, are not run.
JAVASCRIPT := build/transformers-js
transformers-js: setup $(JAVASCRIPT)/ready
	TRANSFORMERS_JS=$(CURDIR)/$(JAVASCRIPT) $(BIN)/pytest --quiet -m transformers_js tests/transformers_js

$(JAVASCRIPT)/ready: tests/transformers_js/package.json
	mkdir -p $(JAVASCRIPT)
	cp $< $(JAVASCRIPT)
	npm install --prefix $(JAVASCRIPT) --ignore-scripts --no-package-lock --no-audit --no-fund
	touch $@

docs: setup
	$(BIN)/cog --check README.md benchmarks/README.md examples/README.md

# Every Hugging Face format, loaded by its own reader; gptqmodel, which takes minutes to build, where it disturbs nobody.
readers: setup build/readers/ready
	$(BIN)/python -m benchmarks.compat --gptqmodel $(CURDIR)/build/readers/bin/python

build/readers/ready: benchmarks/compat/environment.txt
	$(PYTHON) -m venv build/readers
	build/readers/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

readme: setup
	$(BIN)/cog -r README.md benchmarks/README.md examples/README.md

clean:
	rm -rf build .venv
