# make help lists the targets. Everything is installed into .venv through constraints.txt.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS := $(VENV)/.installed-test
# Unless one is named, the Python that .venv was made with.
PYTHON ?= $(or $(wildcard $(shell sed -n 's/^executable = //p' $(VENV)/pyvenv.cfg 2>/dev/null)),python3)
DATA := data/demo
CONFIG := configs/v2_tiny.json
RUN := runs/v2_tiny
# Low-shot, as in the paper: a tenth of the labels, three draws; 600 updates of 64 clips.
PROBE := --labels digit,direction --label-shares 0.1 --baselines random,pixels \
	--epochs 96 --batch 64 --lr 1e-3
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/*)

.DEFAULT_GOAL := help
.PHONY: help install train test test-all test-fake-cuda bench gpu-check lint format clean

# .venv is made anew where another Python than its own is named, and where its own was replaced.
VERSION := -c 'import sys; print(sys.version)' 2>/dev/null
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) $(VERSION)),$(shell $(BIN)/python $(VERSION)))
.PHONY: $(STAMP)
endif
endif
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell $(BIN)/python -c 'import pip; print("found")' 2>/dev/null),found)
.PHONY: $(STAMP)
endif
endif

PIP := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt
# On all cores, where pip would use one; some files are templates, which do not compile.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

install: $(TESTS) ## create .venv with everything that training and tests need

$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: found Python {v[0]}.{v[1]}, expected 3.11 to 3.13; name one with: make PYTHON=python3.13 …")'
	@command -v $${CXX:-c++} >/dev/null || { echo "error: found no C++ compiler, expected c++ or CXX; install one, e.g. g++" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; h = os.path.join(sysconfig.get_path("include"), "Python.h"); sys.exit(0 if os.path.exists(h) else f"error: found no {h}, expected the headers of Python; install them, e.g. python3-dev")'
	@# created again after an interrupted attempt, or for another Python version
	test "$$($(BIN)/python -c 'import pip, sys; print(sys.version)' 2>/dev/null)" = "$$($(PYTHON) -c 'import sys; print(sys.version)')" || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e '.[train]'
	@$(COMPILE)
	@touch $@

# Not -e '.[test]', which would compile the C++ once more.
$(TESTS): $(STAMP)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"], sep="\n")' > $@.txt
	$(PIP) -r $@.txt
	@$(BIN)/python tests/exchange/torchvision_ops.py
	@$(COMPILE)
	@touch $@

$(DATA)/train.csv: $(STAMP) $(wildcard vjepa_fast/data/prepare/demo/*.py)
	$(BIN)/vjepa-fast demo-data --output $(DATA)
	@touch $@

train: $(STAMP) $(DATA)/train.csv ## make demo data, pretrain a tiny model and probe it, in minutes
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/deepspeed vjepa_fast/train.py --config $(CONFIG)
	$(BIN)/vjepa-fast probe --checkpoint $(RUN) $(PROBE)

# One test process per core; idle processes take tests from busy ones.
SPREAD := -n logical --maxprocesses 8 --dist worksteal

test: $(TESTS) ## run all tests but the slow ones
	$(BIN)/python -m pytest $(SPREAD)

test-all: $(TESTS) ## run all tests, also the slow ones
	$(BIN)/python -m pytest $(SPREAD) -m ''

# torch's CUDA build, in an environment of its own, on a device that computes nothing.
CUDA := .venv-cuda
CUDA_TORCH := torch==2.14.1 torchvision==0.29.1
CUDA_LIBRARY := $(CUDA)/libcuda.so.1

$(CUDA)/.installed: $(SOURCES)
	$(PYTHON) -m venv --clear $(CUDA)
	grep -vE '^(torch|torchvision)==' constraints.txt > $(CUDA)/constraints.txt
	printf '%s\n' $(CUDA_TORCH) >> $(CUDA)/constraints.txt
	$(CUDA)/bin/python -m pip install -q --no-compile --disable-pip-version-check \
		-c $(CUDA)/constraints.txt $(CUDA_TORCH) -e '.[train]' pytest
	@touch $@

$(CUDA_LIBRARY): $(wildcard tests/fake_cuda/*.cpp tests/fake_cuda/*.h) $(CUDA)/.installed
	$${CXX:-c++} -std=c++17 -O1 -Wall -Wextra -shared -fPIC -Wl,-soname,libcuda.so.1 -o $@ $(filter %.cpp,$^) \
		-Itests/fake_cuda/include -I$$(echo $(CUDA)/lib/python3*/site-packages/nvidia/cu13/include)

test-fake-cuda: $(CUDA_LIBRARY) ## run steps on torch's CUDA build without a GPU, 6 GB; see docs/gpu_check.md
	for world in 1 8; do FAKE_CUDA_WORLD=$$world LD_PRELOAD=$(abspath $<) \
		$(CUDA)/bin/python -m pytest --device cuda tests/fake_cuda || exit 1; done

# The sizes suit two cores: a few minutes on an idle machine.
BENCH := runs/bench
bench: $(TESTS) ## run all benchmarks at CPU sizes, in minutes; results and pictures in runs/bench
	mkdir -p $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python bench/throughput.py --config configs/tiny.json --steps 10 --json $(BENCH)/throughput.json
	$(BIN)/python bench/scaling.py $(BENCH)/throughput.json --json $(BENCH)/scaling.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/growth.py --config configs/tiny.json --repeats 3 --json $(BENCH)/growth.json
	$(BIN)/python bench/kernels.py --no-compile --clips 1 --repeats 5 --output $(BENCH)/kernels.jsonl
	$(BIN)/python bench/decode.py --sizes 320x240 --gops 12 --lengths 16 --output $(BENCH)/decode.jsonl
	$(BIN)/python bench/masks.py --repeats 5 --check-steps 50 --output $(BENCH)/masks.jsonl
	$(BIN)/python bench/scaling.py --check --json $(BENCH)/scaling_check.json

gpu-check: $(TESTS) ## test everything on this GPU and measure its speed, in 10 minutes; writes report.md
	$(BIN)/python bench/gpu_check.py

lint: $(TESTS) ## check with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TESTS) ## fix and format with ruff, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, .venv-cuda, builds, demo data and the run of make train
	rm -rf $(VENV) $(CUDA) build *.egg-info vjepa_fast/masks/*.so $(DATA) $(RUN)
