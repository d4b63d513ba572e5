# Every target does its own set-up: a virtual environment in .venv, filled once and again when setup.cfg changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint format bench parity clean

.venv/ready: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "fcclip_jax needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $@

# make demo WORDS="fox; hot dog; sand"
demo: .venv/ready
	$(BIN)/fcclip demo --output demo_output $(if $(WORDS),--vocabulary "$(WORDS)")

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/shellcheck launch/*.sh launch/slurm.sbatch

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers: PyTorch, open_clip, transformers. torchvision and timm without their dependencies, which would bring
# another torch.
.venv-parity/ready: setup.cfg
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install --quiet torch==2.13.0 numpy scipy pillow transformers safetensors psutil
	.venv-parity/bin/pip install --quiet --no-deps torchvision==0.28.0 timm open-clip-torch
	.venv-parity/bin/pip install --quiet ftfy regex tqdm huggingface_hub pyyaml
	.venv-parity/bin/pip install --quiet -e '.[dev]'
	touch $@

parity: .venv/ready .venv-parity/ready
	.venv-parity/bin/python -m pytest -m parity tests
	$(BIN)/python -m tools.parity

bench: .venv/ready .venv-parity/ready
	$(BIN)/python -m tools.bench.compare
	$(BIN)/python -m tools.bench.loader --json docs/training_loader.json
	$(BIN)/python -m tools.bench.train_step --json docs/training_step.json
	$(BIN)/python -m tools.bench.train_memory --json docs/training_memory.json

clean:
	rm -rf .venv .venv-parity demo_output
