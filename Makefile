# make demo: train on the built-in data set, evaluate, draw detections (6 minutes on 2 cores, after installation)
# make notebook: open demo.ipynb, the paper on one image, in the browser (docs/fpn.ipynb: torchvision's detector)
# make dashboard: start a Visdom server on this machine, to which a training plots
# make test: run the tests.  make lint: run the linter.  All of these install what they need, once, into $(VENV).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# old and new versions of pip read different variables
INSTALL := PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt $(BIN)/pip install -q
# random weights on a CPU: small images and anchors, narrow fc6 and fc7, half of the RoIs positive, inputs of 0 to 255
# because random weights pass on a weak signal
DEMO := $(shell cat docs/demo_options.txt)

.PHONY: demo notebook notebook-outputs dashboard options test lint clean

demo: $(VENV)/run.done
	$(BIN)/python train.py train --env=demo --data=shapes --overwrite $(DEMO)
	$(BIN)/python eval.py --load-path=runs/demo/last.pth --json=runs/demo/eval.json
	$(BIN)/python predict.py 'datasets/shapes-*/JPEGImages/test_*.jpg' --load-path=runs/demo/last.pth --limit=16 \
		--out=runs/demo/predictions
	@echo "pictures: runs/demo/predictions/contact_sheet.png  curves: runs/demo/curves.png  figures: runs/demo/eval.json"

# the picture in docs/benchmarks.md, after make demo
docs/demo.jpg: runs/demo/predictions/contact_sheet.png
	$(BIN)/python -c "from PIL import Image; Image.open('$<').save('$@', quality=85, optimize=True)"

notebook: $(VENV)/notebook.done
	$(BIN)/jupyter lab demo.ipynb

# run both anew and keep the outputs, without times and versions; after `make demo`, whose network demo.ipynb shows
notebook-outputs: $(VENV)/test.done
	for book in demo.ipynb docs/fpn.ipynb; do \
		$(BIN)/jupyter execute --inplace $$book || exit 1; \
		$(BIN)/python -c "import sys, nbformat; book = nbformat.read(sys.argv[1], 4); \
			[cell.metadata.clear() for cell in book.cells]; book.metadata.language_info = {'name': 'python'}; \
			nbformat.write(book, sys.argv[1])" $$book; \
	done

# the first line downloads the scripts of the page, once; without internet the server runs all the same
dashboard: $(VENV)/run.done
	@$(BIN)/python -c "import signal; signal.alarm(300); from visdom.server.build import download_scripts; \
		download_scripts()" 2>/dev/null \
		|| echo "The scripts of the page cannot be downloaded, so it stays blank: run make dashboard once with internet," \
		"or look at runs/ENV/curves.png and runs/ENV/pictures/, or train with --tensorboard."
	$(BIN)/python -c "from visdom.server.run_server import main; main()" -port 8097 -bind_local -env_path runs/.visdom

# docs/options.md: the --help of every command
options: $(VENV)/run.done
	for command in "train.py train" eval.py predict.py "-m tools.check_data" "-m tools.fit_anchors" "-m tools.benchmark" \
		"-m tools.make_proposals" "-m tools.run_seeds" "-m tools.gpu_check" "-m tools.export_onnx"; \
		do printf '## `python %s`\n\n```\n' "$$command"; $(BIN)/python $$command --help; printf '```\n\n'; done \
		| cat docs/options_head.txt - > docs/options.md

test: $(VENV)/test.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs datasets

$(VENV)/run.done: requirements.txt build-constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	@echo "installing into $(VENV): 6 GB, some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

# JupyterLab is only for looking; tornado stays below 6.6, see requirements.txt
$(VENV)/notebook.done: $(VENV)/run.done
	$(INSTALL) -r requirements.txt "jupyterlab>=4.2"
	touch $@

$(VENV)/test.done: $(VENV)/run.done requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@
