# make demo: set everything up and generate three videos. make test: set everything up and run the quick tests.
PYTHON ?= python3
PIP_TORCH ?= torch==2.13.0
# Number of processes that run the tests. More than cores, because many tests wait.
TEST_WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_READY := $(VENV)/.ready-torch
TESTS_READY := $(VENV)/.ready-tests
PYTEST = -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder
# The folders are named, too, because each worker spends seconds on collecting all tests.
QUICK := unit or smoke
CLIENT_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile
# The pipeline whose weights are in the repository. The export writes this file last.
SMALL := checkpoints/longlive-small
SMALL_READY := models/longlive-small/config.pbtxt
# An earlier location of the export: two models with the same name are refused.
OLD_SMALL := model_repository/longlive-small
SMALL_FILES := $(wildcard $(addprefix $(SMALL)/,*.json *.safetensors */*.json */*.safetensors))
# Manifests detect engines of other weights, but not of other code: if a file that shapes graphs changes, all are rebuilt.
GRAPH_CODE := $(wildcard export/modules/*.py) \
	$(addprefix export/,checkpoint.py checkpoint_files.py config.py graph_specs.py lora.py onnx_files.py recognition.py spec.py \
	tensor_files.py weight_names.py)

.PHONY: help setup torch test-setup model demo serve test test-all coverage lint fix bench soak compile-full comfyui-branch audit check release-check lock clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Create .venv with the packages of the lock file

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13) and "Filmstrip needs Python 3.11 or 3.12; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

torch: $(TORCH_READY) ## Install PyTorch, ONNX Runtime and what the export needs

$(TORCH_READY): requirements-torch.txt $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-torch.txt
	@touch $(TORCH_READY)

$(TESTS_READY): requirements-tests.txt requirements-clients.txt $(TORCH_READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-tests.txt
	rm -rf $(VENV)/clients $(VENV)/clients-openai-2.2
	$(CLIENT_INSTALL) --target $(VENV)/clients -r requirements-clients.txt
	$(CLIENT_INSTALL) --target $(VENV)/clients-openai-2.2 openai==2.2.0
	@touch $(TESTS_READY)

model: $(SMALL_READY) ## Export longlive-small if its engines are out of date
	@[ ! -f $(OLD_SMALL)/1/pipeline.json ] || { echo "removing $(OLD_SMALL), which is in models/ now"; rm -r $(OLD_SMALL); }

$(SMALL_READY): $(SMALL_FILES) $(GRAPH_CODE) $(wildcard export/*.py filmstrip/*.py filmstrip/runtime/*.py) $(TORCH_READY)
	$(BIN)/python -m export longlive --checkpoint $(SMALL) --id longlive-small --size 64x64 \
		--lora outlines=$(SMALL)/loras/outlines.safetensors $(if $(filter $(GRAPH_CODE),$?),--fresh)

demo: model ## Start a server, generate three videos and check them
	$(BIN)/python -m demo

serve: model ## Serve on http://127.0.0.1:8000 with an embedded Triton
	$(BIN)/python -m frontend --embedded

test-setup: $(TESTS_READY) ## Install everything that tests need

test: test-setup ## Run the unit tests and a smoke test of the live server
	$(BIN)/python $(PYTEST) -m "$(QUICK)" tests/unit tests/live

test-all: test ## Run every test: those of `make test`, then the others
	$(BIN)/python $(PYTEST) -m "not ($(QUICK))" --ignore tests/unit

coverage: test-setup ## Run every test and show the lines they do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: torch ## Check style, types, imports, spelling and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/proselint --config .proselintrc.json check $$(git ls-files '*.md')

fix: setup ## Apply the automatic fixes of ruff, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: model ## Compare the server with the limits of the machine
	$(BIN)/python -m benchmarks

soak: setup ## Run random traffic and faults for half an hour, then print a verdict
	$(BIN)/python -m tests.soak

compile-full: $(TESTS_READY) ## Compile every graph of LongLive at full size, without weights and without a GPU
	$(BIN)/python -m export.compile_full

comfyui-branch: ## Make the branch comfyui-pack, which ComfyUI installs from this repository's URL
	git subtree split -q --prefix=comfyui --branch comfyui-pack
	@git ls-tree --name-only comfyui-pack | grep -qx __init__.py
	@echo "comfyui-pack: push it, and install it with git clone --branch comfyui-pack"

audit: setup ## Check the pinned packages for known vulnerabilities (needs network access)
	$(BIN)/python -m tools.audit

check: lint test-all audit ## Run everything that CI runs, and audit

release-check: setup ## Build the package, install it into an empty environment, make a video with it
	$(BIN)/python -m tools.release_check

lock: setup ## Update the lock files after a change of pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--extra frontend --extra embedded --extra runtime --extra dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes \
		--constraint requirements.lock --extra frontend pyproject.toml -o deploy/frontend.lock
	# The lock serves every Python and so has an ml-dtypes that onnx finds too old.
	sed '/^ml-dtypes==/,/^    # via/d' requirements.lock | $(BIN)/uv pip compile --quiet --generate-hashes \
		--python-version 3.12 --python-platform x86_64-manylinux_2_35 --no-annotate \
		--constraint - --constraint requirements-torch.txt --constraint requirements-tests.txt --extra triton pyproject.toml -o deploy/triton.lock

clean: ## Remove .venv, data (with all uploads and outputs), out (but not out/training) and the exported model
	[ ! -d out ] || find out -mindepth 1 -maxdepth 1 ! -name training -exec rm -rf {} +
	rm -rf $(VENV) models/longlive-small data .pytest_cache .mypy_cache .ruff_cache .hypothesis
