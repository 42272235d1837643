# `make help` lists the targets. VENV=DIR puts the virtual environment elsewhere;
# PYTHON=FILE uses that interpreter as it is and installs nothing.
VENV ?= .venv
OLDEST := $(VENV)-oldest
# What old libraries say of newer ones, files that old ASE leaves open, and medians of old pandas are no fault of this package.
OLD_WARNINGS := $(addprefix -W ignore::,DeprecationWarning ResourceWarning pytest.PytestUnraisableExceptionWarning) \
    -W "ignore:Mean of empty slice:RuntimeWarning"
export PYTHONPATH := $(CURDIR)

ifdef PYTHON
READY :=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/installed
endif

# Put a Python that is new enough into the shell's variable `base`.
FIND_BASE := base=$$(command -v python3.11 || command -v python3) \
    && $$base -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || { echo "atomrl_nb needs Python 3.11 or newer: found '$$base'. Install python3.11, or give PYTHON=FILE." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-oldest test-wheel test-browser check mutate docs lab export outputs outputs-elsewhere readme clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-18s %s\n", $$1, $$2 }'

demo: $(READY)  ## train and relax on a small case, start to end
	$(PYTHON) tools/demo.py

test: $(READY)  ## nbdev_test on every notebook, then pytest
	@status=0; $(PYTHON) tools/notebooks.py --test || status=1; $(PYTHON) -m pytest || status=1; exit $$status

test-slow: $(READY)  ## the long tests
	$(PYTHON) -m pytest -m slow

test-oldest: $(OLDEST)/installed  ## notebooks and pytest, with the oldest of all requirements that settings.ini allows
	@status=0; $(OLDEST)/bin/python tools/notebooks.py --test || status=1; $(OLDEST)/bin/python -m pytest $(OLD_WARNINGS) || status=1; exit $$status

test-wheel:  ## build the wheel, install it into an empty environment, and use it outside of this folder
	@$(FIND_BASE); $$base tools/wheel.py

test-browser: $(READY)  ## 3-D views in Chromium: on the built site without a network, and in JupyterLab
	$(PYTHON) -m pytest -m browser -rs tests/browser

check: $(READY)  ## everything that CI checks
	@$(PYTHON) tools/check.py

mutate: $(READY)  ## change the code on purpose, and name the changes that no test notices (some ten minutes)
	@$(PYTHON) tools/mutate.py

docs: $(READY)  ## build the site into _docs/
	$(PYTHON) tools/docs.py

lab: $(READY)  ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab nbs

export: $(READY)  ## write the package and its stubs from the notebooks, and clean the notebooks
	$(PYTHON) -c "from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()"
	$(PYTHON) tools/stubs.py

outputs: $(READY)  ## run every notebook and save its outputs, and copy those of the guide into its Chinese pages
	$(PYTHON) tools/notebooks.py --save
	$(PYTHON) tools/translate.py

# torch, NumPy, OpenBLAS and MKL compute as on a processor without AVX2; whole counts may then flip by one.
outputs-elsewhere: export ATEN_CPU_CAPABILITY := default
outputs-elsewhere: export OPENBLAS_CORETYPE := Nehalem
outputs-elsewhere: export MKL_CBWR := COMPATIBLE
outputs-elsewhere: export NPY_DISABLE_CPU_FEATURES := X86_V3 X86_V4 AVX512_ICL AVX512_SPR
outputs-elsewhere: $(READY)  ## say which saved outputs another processor would not confirm
	$(PYTHON) tools/notebooks.py --test --check

readme: $(READY)  ## write README.md from nbs/index.ipynb
	$(PYTHON) tools/readme.py

clean:  ## remove what was generated, but not the virtual environment
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache nbs/nbdev.yml
	find atomrl_nb tools tests nbs -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last, so an interrupted installation is taken up again.
$(VENV)/installed: settings.ini setup.py constraints.txt
	@$(FIND_BASE); $$base -m venv $(VENV)
	@echo 'Installing the tested versions into $(VENV): about two minutes.'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,notebook]'
	@touch $@

$(OLDEST)/installed: settings.ini setup.py tools/oldest.py
	@$(FIND_BASE); $$base -m venv --clear $(OLDEST)
	@echo 'Installing the oldest versions into $(OLDEST): about two minutes.'
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check $$($(OLDEST)/bin/python tools/oldest.py)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
