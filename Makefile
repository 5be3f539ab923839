# Every target makes .venv itself. The third-party packages of requirements.lock are installed once per
# version of that file into a shared cache, which a thin .venv in the checkout sees through a .pth file.
#
# DEMO_FLAGS, TEST_FLAGS and BENCH_FLAGS, on make's command line or in the environment, are handed on to what
# demo, test and bench run:
#   make demo DEMO_FLAGS='--places 2000 --held-out 200 --steps 20'    (geoclip demo --help)
#   make test TEST_FLAGS='tests/test_readme.py -k bench'              (pytest --help)
#   make bench BENCH_FLAGS='loss --quick'                             (python -m benchmarks --help)

PYTHON ?= python3
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/semivario-kernels
KEY := $(shell $(PYTHON) -c 'import hashlib, sys; \
	print("py%d.%d-" % sys.version_info[:2] + hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest()[:12])')
ENVIRONMENT := $(CACHE)/environment-$(KEY)
VENV_READY := .venv/ready-$(KEY)
RUN := .venv/bin/python -m

.PHONY: demo test lint bench aot docs gpu sanitize wheels compat lock clean

demo: $(VENV_READY)
	$(RUN) geoclip demo $(DEMO_FLAGS)

# one process per core, with one thread each; "worksteal" leaves a file's tests together, so that what they share is
# made once
test: $(VENV_READY)
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto --maxprocesses 8 --dist worksteal $(TEST_FLAGS)

lint: $(VENV_READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

bench: $(VENV_READY)
	$(RUN) benchmarks $(BENCH_FLAGS)

# every Triton kernel that ships, compiled for sm_80, sm_90 and sm_100; needs no GPU
aot: $(VENV_READY)
	$(RUN) benchmarks.aot

# the documentation as a site in build/site
docs: $(VENV_READY)
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict
	@echo "Written: build/site/index.html"

# sdist and wheels into dist/, tried in an environment of their own
wheels: $(VENV_READY)
	.ci/wheels

# the operators' tests on the oldest and the newest versions, with the interpreters that are there
compat:
	.ci/compat

# on a machine with a GPU, in at most nine minutes: builds csrc/, tests, sanitizes, benchmarks. Uses the Python
# that is there, needs no network and no .venv. OUT=folder takes results and logs; GPU_FLAGS, see
# python -m benchmarks.gpu --help, runs a part: GPU_FLAGS='--only tests'
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(OUT),--out '$(OUT)') $(GPU_FLAGS)

# the native tests, and those of the GPU's kernels on the CPU, under AddressSanitizer and
# UndefinedBehaviorSanitizer; rebuilds without them afterwards
sanitize: $(VENV_READY)
	SEMIVARIO_NATIVE=1 SEMIVARIO_SANITIZE=1 .venv/bin/python setup.py -q build_ext --inplace --force
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		OMP_NUM_THREADS=1 SEMIVARIO_SANITIZE=1 \
		$(RUN) pytest -s tests/semivario_kernels/test_native_*.py tests/semivario_kernels/test_kernels_on_host.py; \
		result=$$?; .venv/bin/python setup.py -q build_ext --inplace --force && exit $$result

lock:
	$(PYTHON) -m venv --clear .lock-environment
	.lock-environment/bin/python -m pip install -q '.[dev]'
	( echo "# Written by 'make lock'. torch pins its own CUDA packages, so that this file serves every platform."; \
	  .lock-environment/bin/python -m pip list --format=freeze | grep -viE '^(nvidia|cuda|triton|pip|semivario)' ) > requirements.lock
	rm -rf .lock-environment

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# no prerequisite: the path holds requirements.lock's hash, and a fresh checkout's files are always newer
$(ENVIRONMENT)/ready:
	@echo "Installing the packages of requirements.lock into $(ENVIRONMENT) (once)"
	@$(PYTHON) -m venv $(ENVIRONMENT)
	@$(ENVIRONMENT)/bin/python -m pip install -q -r requirements.lock
	@touch $@

$(VENV_READY): pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*) | $(ENVIRONMENT)/ready
	@echo "Making .venv: building the package in place"
	@$(PYTHON) -m venv --clear --without-pip .venv
	@.venv/bin/python -c "import subprocess, sysconfig; \
		packages = subprocess.check_output(['$(ENVIRONMENT)/bin/python', '-c', \
			'import sysconfig; print(sysconfig.get_path(\"purelib\"), end=\"\")'], text=True); \
		pth = sysconfig.get_path('purelib') + '/dependencies.pth'; \
		open(pth, 'w').write('import site; site.addsitedir(%r)\n' % packages)"
	@$(RUN) pip install -q --no-deps --no-build-isolation -e .
	@touch $@
