# `make demo` and `make test` do all set-up themselves; see README.md.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
TYPED = build/typed

.PHONY: demo test check lint types random-bundle clean

demo:
	VENV=$(VENV) .ci/setup cpu,export,demo
	$(PYTHON) samples/demo.py

test:
	VENV=$(VENV) .ci/setup cpu,export,dev
	VENV=$(VENV) .ci/audio
	$(MAKE) lint types
	$(PYTHON) -m pytest -n 2

# The native core where a plain test cannot go: sanitizers, other processors, a fuzzer; and the tests that take minutes.
check:
	VENV=$(VENV) .ci/setup cpu,export,dev
	VENV=$(VENV) .ci/audio
	VENV=$(VENV) .ci/check

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# Types are checked on the tree as it is installed: only there edge_sdk.export and edge_sdk.runtimes exist.
types:
	rm -rf $(TYPED)
	$(PYTHON) setup.py -q build_py --build-lib $(TYPED)
	MYPYPATH=$(TYPED) $(PYTHON) -m mypy $(TYPED)/edge_sdk

# The tests' bundle of random weights, and the same one inside the package, made anew from its seed.
random-bundle:
	VENV=$(VENV) .ci/setup cpu,export
	$(PYTHON) samples/random_bundle.py

clean:
	rm -rf build dist out .venv *.egg-info
