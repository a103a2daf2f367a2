# make demo: from nothing to a dataset, its report and a sampled video. make test: lint, types, tests.
# make bench NAME=filter_auc ARGS=videos/: a script of tests/benchmarks; its first lines say what it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test test-cluster test-readers bench clean

demo: $(VENV)/.installed
	$(BIN)/python jobs/demo.py --out $(DEMO)

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -n 3

# What starts several nodes: jobs on a cluster, nodes that come and go.
test-cluster: $(VENV)/.installed
	$(BIN)/python -m pytest -m cluster

# Exports in the dataset classes of trainers that need other versions of packages than we do.
READERS := finetrainers==0.2.0 fastvideo==0.2.1 cosmos-predict2==1.0.9 loguru remote-pdb torchdata wandb
test-readers: $(VENV)/.installed
	$(BIN)/pip install -q --no-deps --target $(VENV)/readers $(READERS)
	PYTHONPATH=$(VENV)/readers $(BIN)/python -m pytest -vv -rs -k "loads or reads or pairs or keeps" tests/export/test_export_libraries.py tests/export/test_export_control.py

bench: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/*/$(NAME).py $(ARGS)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt torch
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)
