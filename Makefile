# `make demo` and `make test` do all the set-up they need, in .venv; see scripts/setup.sh.
PY = .venv/bin/python

.PHONY: help demo test test-slow lint clean setup setup-dev

help:
	@echo 'make demo    set up, then the whole way once: model, fine-tuning, comparison, GGUF, Ollama'
	@echo 'make test    set up, then all checks: ruff, mypy, pytest (PYTEST_ARGS="tests/test_rooms.py -v")'
	@echo 'make test-slow  the tests that take minutes: the wheel in a new environment, a real training on the page'
	@echo 'make lint    set up, then ruff and mypy alone'
	@echo 'make clean   remove .venv, caches and builds; your runs and models stay'
	@echo
	@echo 'PYTHON=/path/to/python3.12 chooses the Python; ARGS="train.epochs=1" changes a setting of the demo.'

setup:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

setup-dev:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh dev

demo: setup
	@$(PY) -m tunesmith demo $(ARGS)
	@echo '  (`. .venv/bin/activate` makes tunesmith a command of this shell)'

lint: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: setup-dev
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
