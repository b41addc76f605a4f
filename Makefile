# Every target installs what it needs first, into .venv; nothing is installed twice.
EXTRAS ?= test,lint
WORKERS ?= 2
# The tests of `make check`: laws of losses, reference values, errors of configs, one engine; little is compiled.
QUICK := losses/test_laws.py losses/test_losses.py losses/test_hidden.py losses/test_published_values.py \
	fusion/test_fusion.py core/test_checkpoint.py core/test_registry.py core/test_schedules.py evaluation data/test_data.py \
	data/test_preparation.py models/test_hub.py run/test_bad_input.py run/test_configs.py run/test_wiring.py docs

python := .venv/bin/python
installed := .venv/.installed-$(EXTRAS)

.PHONY: help install demo test lint laws check test-slow mutants same gain bench docs site clean
.DEFAULT_GOAL := help

help:
	@echo "jaxdistill: knowledge distillation in JAX. Start with: make demo"
	@echo
	@awk -F ': .*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Your own run:   $(python) -m jaxdistill.main --config configs/quickstart.py --workdir runs/mine --config.seed=1"
	@echo "With a GPU:     make install EXTRAS=test,lint,gpu     (other extras: tpu hf wandb)"

demo: $(installed) ## few labels, many texts: distil a small classifier in minutes on a laptop; results in runs/demo
	$(python) -m jaxdistill.main train --preset demo --workdir runs/demo

check: lint ## between two edits, in 90 seconds: style, types, imports, and the tests of pure functions
	$(python) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(addprefix tests/,$(QUICK))

test: lint laws ## all fast checks: lint, types, import contract, tests

lint: $(installed) ## style, types, who may import whom and the picture of it, shell scripts
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	.venv/bin/lint-imports
	$(python) docs/architecture.py --check
	.venv/bin/shellcheck -x -P tpu tpu/*.sh setup.sh

laws: $(installed) ## the fast tests alone
	$(python) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(installed) ## the slow tests: kills at ten moments, experiments, further examples under the laws
	$(python) -m pytest -m slow -n $(WORKERS) --dist loadfile

mutants: $(installed) ## plant bugs one at a time: which does no fast test notice? hours; an interrupted run goes on
	@$(MAKE) --no-print-directory install EXTRAS=test,lint,mutants
	$(python) -m experiments.mutants

gain: $(installed) ## what distillation is worth: 5 seeds beside the same student without a teacher
	$(python) -m experiments.gain

same: $(installed) ## do this commit and BASE=COMMIT train alike, to the bit?
	$(python) -m experiments.same --base $(BASE)

bench: $(installed) ## the loop beside the bare jitted step
	$(python) -m experiments.benchmarks.loop

docs: $(installed) ## pages of methods from docstrings, and the picture of docs/architecture.md from imports
	$(python) docs/make.py
	$(python) docs/architecture.py

site: $(installed) ## the site: guides, methods, studies and reference, searched without a network; in build/site
	@$(MAKE) --no-print-directory install EXTRAS=test,lint,site
	JAX_PLATFORMS=cpu $(python) docs/site/build.py

install: $(installed) ## only the environment

$(installed): pyproject.toml constraints.txt setup.sh
	@sh setup.sh $(EXTRAS)
	@touch $@

clean: ## remove the environment and the caches, never runs/
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
