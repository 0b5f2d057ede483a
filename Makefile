PYTHON ?= python
BIOME = @biomejs/biome@2.6.8
QUICK = tests/core tests/runs/test_files.py tests/media/test_images.py tests/hooks/test_manager.py \
	tests/layers/test_capture.py tests/models/test_networks.py tests/scores/test_targets.py tests/attribution/test_cam.py \
	tests/attribution/test_saliency.py tests/deconv tests/ascent/test_objectives.py tests/topk/test_patches.py \
	tests/evaluation/test_ranking.py tests/watch/test_history.py tests/page/test_units.py tests/cli/test_help.py tests/cli/test_predict.py

.PHONY: help check lint-web format test fast quick docs gallery figures docs-table notebooks benchmark zoo endurance versions

help:  ## say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

check: lint-web  ## lint, formatting, types, import contracts, the page's scripts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as check; check()"

lint-web:  ## lint the page's scripts and style sheet, where npx is there
	@if command -v npx >/dev/null; then npx --yes $(BIOME) lint --error-on-warnings torchviz_cnn/page/web torchviz_cnn/evaluation/written/web torchviz_cnn/runs/web torchviz_cnn/watch/web; \
	else echo "lint-web is skipped: it needs npx (Node.js)"; fi

format:  ## repair what can be repaired
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

fast:  ## unit tests only
	$(PYTHON) -m pytest -q -n 2 --dist worksteal -m "not slow"

quick:  ## a look at every room, in less than a minute
	$(PYTHON) -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu" $(QUICK)

test:  ## all tests, as CI runs them
	$(PYTHON) -m pytest -q -n 2 --dist worksteal

docs:  ## the site, in site/ (extra `docs`): warnings are errors, and no network is needed
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

gallery:  ## the pictures of docs/gallery, from the lines on its pages
	OMP_NUM_THREADS=1 $(PYTHON) scripts/gallery.py

figures:  ## the pictures of README and docs
	$(PYTHON) scripts/figures.py

docs-table:  ## the table of methods in docs/methods.md, and what the help of the command line knows of it
	$(PYTHON) scripts/methods_table.py
	$(PYTHON) scripts/choices.py

benchmark:  ## the tables and the figure of docs/performance.md: twelve minutes on a quiet machine; it goes on where it was stopped
	$(PYTHON) scripts/benchmark.py --markdown docs/performance.md --figure docs/figures/benchmark_growth.png

notebooks:  ## run the notebooks in docs/notebooks anew, with small outputs
	$(PYTHON) scripts/notebooks.py

zoo:  ## the table of architectures in docs/compatibility.md: half an hour, 9 GB; it goes on where it was stopped
	$(PYTHON) scripts/zoo.py

endurance:  ## 2,000 examples of each fuzz test, 500 calls of each main function, a Ctrl-C in every place: an hour
	$(PYTHON) -m pytest -q --timeout=3600 --hypothesis-profile=endurance $(wildcard tests/*/test_fuzz.py)
	ENDURANCE_CALLS=500 $(PYTHON) -m pytest -q --timeout=3600 tests/test_endurance.py
	INTERRUPT_PLACES=100000 $(PYTHON) -m pytest -q --timeout=3600 -m slow tests/hooks/test_interrupts.py

versions:  ## the unit tests with the oldest and the newest versions of what is needed
	scripts/versions.sh
