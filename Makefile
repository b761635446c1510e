# Each target makes its own virtual environment in .venv; another Python: make PYTHON=python3.12 test
PYTHON ?= python3
BIN := .venv/bin
# One process for each core; tests/support/scheduling.py says what stays together.
WORKERS ?= -n auto
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: venv demo test test-all test-families signals fuzz check docs bench bench-peers published gpu test-gpu bench-gpu gpu-kit

demo: venv
	$(BIN)/spq-graph quantize reference -o out/demo --force

# All but what takes long: `test-all` runs that as well, and so does whoever takes a change (.ci/run).
test: venv
	@$(BIN)/python -m pytest -q $(WORKERS) -m "not slow"

test-all: venv
	@$(BIN)/python -m pytest -q $(WORKERS)

# Every model family and every source of graphs: made, compared with torch, quantized and run. Minutes, so not part of
# `test-all`.
test-families: venv
	@$(BIN)/python -m pytest -q $(WORKERS) -m families

# Four hundred signals at random instants, over an ONNX file and a folder. Minutes, so not part of `test-all`, which has
# some.
signals: venv
	@$(BIN)/python -m pytest -q $(WORKERS) -m signals

# Mutated graphs and documents by the thousand, from a seed; a quarter of an hour, so not part of `test-all`, which has
# some.
fuzz: venv
	@$(BIN)/python -m tests.fuzz --seed $(or $(SEED),0)

check: venv
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports

# What the reference says is written from the schemas; the pages come out in out/docs.
docs: venv
	$(BIN)/python docs/reference.py
	$(BIN)/mkdocs build --strict -d out/docs

bench: venv
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/quantize_time.py
	$(BIN)/python benchmarks/fp8_matmul.py
	$(BIN)/python benchmarks/formats.py
	$(BIN)/python benchmarks/end_to_end.py

# Minutes, and 4 GB of disk: the other quantizers are installed into environments of their own, in the user's cache.
bench-peers: venv
	$(BIN)/python benchmarks/peers.py

# An hour, and 8 GB of disk in the user's cache: a published model, by us and by what a user would pick instead, each peer
# in an environment of its own, on one text. Some of them: PUBLISHED='--only ours llama_q8_0'.
# Texts of your own: make published PUBLISHED='--calibration a.txt --text b.txt'.
published: venv
	$(PIP) -e '.[gguf]'
	$(BIN)/python -m benchmarks.published $(PUBLISHED)

# On a machine with an NVIDIA GPU and nvcc; in an environment of its own, since both runtimes install the same module.
test-gpu: gpu
	.venv-gpu/bin/python -m pytest -q tests/gpu

bench-gpu: gpu
	.venv-gpu/bin/python benchmarks/fp8_cuda.py --save

# What `benchmarks/gpu/run.sh` runs on a machine with an H200 and no network; made without a GPU, where nvcc is.
gpu-kit: venv
	$(PIP) zstandard
	$(BIN)/python -m benchmarks.gpu.pack out/gpu-kit

venv: .venv/installed

gpu: .venv-gpu/installed

.venv-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[gpu,test]' 'onnxruntime-gpu[cuda,cudnn]'
	@touch $@

# Torch goes first and alone, so that whatever build of it is chosen is kept (see constraints.txt).
.venv/installed: pyproject.toml constraints.txt $(wildcard runtime/csrc/*.* runtime/csrc/cpu/*.* runtime/csrc/cpu/int8/* runtime/csrc/cuda/*)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	rm -f runtime/lib/*  # one that no longer compiles must not pass for what these sources make
	$(PIP) -e '.[cpu,export,test]'
	@touch $@
