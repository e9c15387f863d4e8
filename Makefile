# Every target makes what it needs: Python 3.11 or newer, a C++17 compiler and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOURCES := $(shell find qtaml_onnx passes custom_ops -type f ! -path '*/__pycache__/*' ! -path '*/lib/*' 2>/dev/null) pyproject.toml

# Test files side by side on all cores.
PARALLEL := -n auto --dist loadfile
DIGITS := examples/digits
DEMO_RATE := 0.05

.PHONY: demo test test-slow test-all lint format bench sanitize fuzz docs wheel clean

demo: $(STAMP)
	@mkdir -p out
	@echo "Hardening $(DIGITS)/digits_cnn.onnx for a memory in which every bit flips with probability $(DEMO_RATE)"
	@$(BIN)/qtaml-onnx harden $(DIGITS)/digits_cnn.onnx -o out/digits_cnn.onnx --flip-rate $(DEMO_RATE) \
		--eval $(DIGITS)/digits_eval.npz --calibration $(DIGITS)/digits_calibration.npz

test: $(VENV)/.test
	$(BIN)/pytest $(PARALLEL) -m "not slow"

test-slow: $(VENV)/.test
	$(BIN)/pytest $(PARALLEL) -m slow

test-all: $(VENV)/.test
	$(BIN)/pytest $(PARALLEL)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck && mkdir -p build/typecheck
	cp -RL qtaml_onnx build/typecheck/qtaml_onnx && rm -rf build/typecheck/qtaml_onnx/passes
	cp -R passes build/typecheck/qtaml_onnx/passes
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p qtaml_onnx

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ldpc.py is not among them: it makes the table of residual rates that the package ships.
BENCHMARKS := design injector campaign sensitivity physics inference quantized overhead size

bench: $(VENV)/.test
	@mkdir -p out
	for script in $(BENCHMARKS:%=benchmarks/%.py); do $(BIN)/python $$script --out out/$$(basename $$script .py).json || exit 1; done

# The C++ kernels and the operator, with fuzzed arguments, under the address and undefined-behaviour sanitizers.
sanitize: | $(VENV)/bin/python
	command -v cmake >/dev/null || test -x $(BIN)/cmake || $(BIN)/pip install --quiet cmake
	PATH="$$PATH:$(CURDIR)/$(BIN)" cmake -S custom_ops -B build/sanitize -DCMAKE_BUILD_TYPE=Release -DQTAML_SANITIZE=ON -DQTAML_EXERCISER=ON
	PATH="$$PATH:$(CURDIR)/$(BIN)" cmake --build build/sanitize
	build/sanitize/qtaml_exerciser
	build/sanitize/qtaml_operator_fuzzer

# 100,000 damaged files unless told otherwise: make fuzz FUZZ="--inputs 1000000 --jobs 8"
FUZZ :=
fuzz: $(VENV)/.test
	@mkdir -p out
	$(BIN)/python tests/fuzz/run.py --out out/fuzz.json $(FUZZ)

# Into build/site; warnings are errors. The tests look at what was built.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	QTAML_SITE=build/site $(BIN)/pytest -q tests/docs/test_site.py

wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("qtaml-onnx needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# The package is installed, not run from the tree: what is tested is what a user gets.
$(STAMP): $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet .
	@touch $@

$(VENV)/.test: $(STAMP) pyproject.toml
	$(BIN)/pip install --quiet '.[test,cluster]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/pip install --quiet '.[test,cluster,lint]'
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	$(BIN)/pip install --quiet '.[test,docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist out
