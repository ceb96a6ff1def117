PYTHON ?= python3
MAP ?= 27m_vs_30m
# Environment steps of the demo: about two minutes on two cores.
TOTAL ?= 40960
# Processes that share the tests, file by file.
WORKERS ?= 2

.PHONY: venv train test lint

# The stamp is newer than requirements.txt once everything in it is installed.
venv: .venv/.installed

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

train: venv
	.venv/bin/python dpo_smac.py --map $(MAP) --total-timesteps $(TOTAL)

test: venv
	.venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: venv
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy envs benchmark
