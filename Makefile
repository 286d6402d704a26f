# `make demo` quantizes and evaluates the reference checkpoint; `make test` runs the checks of a change; `make compat` loads
# artifacts with packages that cannot be installed next to mcpmq, `make transformers-js` with transformers.js, `make genai`
# with ONNX Runtime GenAI, `make mlx` with mlx-vlm, `make cluster` with Ray. `make campaign` injects faults: kills, fuzzed files,
# full disks, concurrent runs.
PYTHON ?= python3
BIN := .venv/bin
# Spinning threads of two busy processes slow each other down by a factor of eight.
export OMP_WAIT_POLICY := passive

.PHONY: setup demo gate test lint types layers unit docs site min-runtime transformers-js genai mlx cluster compat campaign readme clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

SETS := --calibration calibration/starter --eval-set calibration/heldout
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

# mypy takes one core for minutes, so it runs beside the other checks.
test: setup
	$(MAKE) --jobs 2 lint types layers docs site unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal --quiet

# The minimum ONNX Runtime version of the graphs instead of the pinned one.
MIN_RUNTIME := build/onnxruntime-1.24.4
min-runtime: setup
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(MIN_RUNTIME) onnxruntime==1.24.4
	PYTHONPATH=$(MIN_RUNTIME) $(BIN)/pytest --quiet tests/formats tests/runners/test_onnx.py tests/runners/test_fake_quant.py

# Load artifacts in transformers.js in Node. Install scripts of packages, which download more files, do not run.
JAVASCRIPT := build/transformers-js
transformers-js: setup $(JAVASCRIPT)/ready
	TRANSFORMERS_JS=$(CURDIR)/$(JAVASCRIPT) $(BIN)/pytest --quiet -m transformers_js tests/transformers_js

$(JAVASCRIPT)/ready: tests/transformers_js/package.json
	mkdir -p $(JAVASCRIPT)
	cp $< $(JAVASCRIPT)
	npm install --prefix $(JAVASCRIPT) --ignore-scripts --no-package-lock --no-audit --no-fund
	touch $@

# Load artifacts in ONNX Runtime GenAI, with the ONNX Runtime of .venv.
GENAI := build/genai
genai: setup $(GENAI)/ready
	GENAI=$(CURDIR)/$(GENAI) $(BIN)/pytest --quiet -m genai tests/genai

$(GENAI)/ready: Makefile
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(GENAI) onnxruntime-genai==0.18.0
	touch $@

# Load MLX artifacts in mlx-vlm, on the CPU.
MLX := build/mlx
mlx: setup $(MLX)/ready
	PYTHONPATH=$(MLX) $(BIN)/pytest --quiet -m mlx -W ignore tests/formats/test_mlx.py

$(MLX)/ready: Makefile
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(MLX) mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 mlx-vlm==0.7.10
	touch $@

# Start clusters of two nodes on this machine, and calibrate with them; it takes minutes.
cluster: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" RAY_AUTH_MODE=token OMP_NUM_THREADS=1 $(BIN)/pytest --quiet -m cluster tests

# The generated parts of the documents are up to date.
GENERATED := README.md ARCHITECTURE.md benchmarks/README.md $(wildcard docs/*.md)
docs: setup
	$(BIN)/cog --check $(GENERATED)

# The documentation as a site in build/site; links to missing pages, headings and files are errors.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Load every Hugging Face format with its own packages; gptqmodel has an environment of its own and takes minutes to build.
compat: setup build/compat/ready
	$(BIN)/python -m benchmarks.compat --gptqmodel $(CURDIR)/build/compat/bin/python

build/compat/ready: benchmarks/compat/environment.txt
	$(PYTHON) -m venv build/compat
	build/compat/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

SEED := 1
COUNT := 50
TIME_LIMIT := 3600
campaign: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign --seed $(SEED) --count $(COUNT) --time-limit $(TIME_LIMIT)

readme: setup
	$(BIN)/python -m benchmarks.recipe_results
	$(BIN)/python -m benchmarks.size_plot
	$(BIN)/python -m benchmarks.bits_plot
	$(BIN)/python -m benchmarks.structured_plot
	$(BIN)/cog -r $(GENERATED)

clean:
	rm -rf build .venv
