.PHONY: setup check static test slow row bench table smoke

setup:            ## everything a contributor needs, into the active environment
	pip install -e ".[test]"

check: static     ## before every commit: style, types, the tests that take a minute
	pytest -q --ignore tests/test_models.py --ignore tests/test_cnn.py --ignore tests/test_recipes.py

static:           ## style, types, README in step with the sources
	ruff check .
	ruff format --check .
	mypy
	python docs/make_readme.py --check
	python docs/make_architectures.py --check
	python docs/make_performance.py --check

test:             ## what CI runs
	pytest

slow:             ## what takes minutes or gigabytes
	pytest -m slow

row:              ## one architecture: make row MODEL=deit
	pytest -n 0 tests/test_models.py tests/test_cnn.py -k "$(MODEL)"

bench:            ## the CPU part of docs/performance.md again, in fewer rounds: on a machine that does nothing else
	python benchmarks/start.py --quick
	python benchmarks/inference.py --quick
	python benchmarks/training.py --quick
	python benchmarks/data.py --quick
	python benchmarks/index.py --quick
	python benchmarks/end_to_end.py --quick
	python benchmarks/growth.py --quick
	python benchmarks/recording.py --quick

table:            ## README's file tree and table, docs/architectures.md, from the sources
	python docs/make_readme.py
	python docs/make_architectures.py

smoke:            ## every recipe, two steps
	pytest tests/test_recipes.py
