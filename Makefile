# Requires Python 3.11+ and make. Everything is installed into .venv.
# Another build of torch:  make serve TORCH="torch==2.11.0", or a wheel's path, or anything else that pip install takes.

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: serve test quick install lint bench soak chaos lifecycles containers fuzz clean keep-link

serve: install keep-link
	$(BIN)/zwatch serve $(ARGS)

# What models/current points to is deployed, not developed: `git stash`, `reset` and `switch` must not change it.
# Undo with: git update-index --no-skip-worktree models/current
keep-link:
	@git update-index --skip-worktree models/current 2>/dev/null || true

# Two processes, since many tests wait; a file's tests stay together and share its servers. One: make test WORKERS=0
test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Fast tests for development: those that need no server and no long stress, about two minutes.
quick: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "not slow and not gpu" tests/deploy tests/shadow tests/engine tests/generation tests/rollout \
		tests/test_structure.py tests/test_docs.py tests/test_errors.py tests/test_config.py $(ARGS)

# Containers, watching and mounted file systems in their long form. They need root, and podman, bindfs, sshfs and openssh-server.
containers: $(VENV)/.test
	ZWATCH_LONG=1 $(BIN)/python -m pytest -q tests/test_containers.py tests/test_manifests.py tests/test_watching.py \
		tests/test_mounts.py tests/rollout/test_failing_reads.py $(ARGS)

# Faults below the service, all of them instead of a sample: every system call and allocation of a deploy fails once, 10,000
# bytes of a version change, files change while they are loaded. Needs gcc. About an hour.
chaos: $(VENV)/.test
	ZWATCH_LONG=1 $(BIN)/python -m pytest -v -s tests/chaos tests/rollout/test_allocations.py $(ARGS)

install: $(VENV)/.install

# An hour and a half: the parsers a quarter of an hour each, and 10,000 generated requests. See tests/fuzz/run.py.
fuzz: $(VENV)/.fuzz
	ZWATCH_LONG=1 $(BIN)/python -m pytest -rP tests/fuzz tests/api/test_schemathesis.py $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Random lifecycles, flips under load, fleets, and kill -9 at random moments, in their long forms: one to two hours on a free core.
lifecycles: $(VENV)/.test
	ZWATCH_LONG=1 $(BIN)/python -m pytest -s tests/lifecycles tests/fleet $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/flip.py $(ARGS)

# An hour of mixed traffic with a deploy every 5 s; what the process holds, drawn to benchmarks/results/soak.png.
# On a GPU eight minutes: make soak ARGS="--minutes 8 --device cuda:0 --preset full --work DIR --out soak_gpu.json"
soak: $(VENV)/.bench
	$(BIN)/python benchmarks/soak.py $(ARGS)

clean:
	rm -rf $(VENV)

# torch is installed first, so that no later package selects another build. Bytecode is compiled here, not at the first request.
$(VENV)/.install: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zwatch needs Python 3.11 or newer; choose one with make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	$(BIN)/python -m compileall -q zwatch
	touch $@

$(VENV)/.test: $(VENV)/.install
	$(PIP) --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --constraint constraints.txt matplotlib
	touch $@

$(VENV)/.lint: $(VENV)/.install
	$(PIP) --constraint constraints.txt --editable '.[lint]'
	touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(PIP) --constraint constraints.txt --editable '.[test,fuzz]'
	touch $@
