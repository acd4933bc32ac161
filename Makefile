# Every target makes .venv first, or brings it up to date; PYTHON=… says with
# which interpreter (3.8 to 3.13).

# The folder of the environment.
export venv ?= .venv
python = $(venv)/bin/python

# A checkout of Lasagne instead of its release, in an environment of its own.
ifdef lasagne
venv := .venv-lasagne
also = --editable $(abspath $(lasagne))
endif

# Without Python.h, no compiler: see .ci/venv. THEANO_FLAGS comes last, wins.
flags = if [ -e $(venv)/no-header ]; then \
	export THEANO_FLAGS="cxx=,$${THEANO_FLAGS-}"; fi;

.PHONY: help demo mpi-demo bench test coverage flags-test widths-test \
	mpi-test pythons-test python-test frameworks-test fuzz kills sanitize \
	soak docs lint clean

help:
	@echo "make demo   train on digits, with and without batch normalization"
	@echo "make mpi-demo  train on digits, on 2 processes (or RANKS=…)"
	@echo "make bench  measure the speed, against others (BENCH=… are options)"
	@echo "make test   ruff, then all tests but those of many processes"
	@echo "make test lasagne=…  the same, with a checkout of Lasagne"
	@echo "make coverage  the same, and which branches the tests do not reach"
	@echo "make flags-test  the tests of the kernels, with -ffast-math"
	@echo "make widths-test  the tests of the kernels, for each vector width"
	@echo "make mpi-test  the tests of distributed training, on 1 to 4 processes"
	@echo "make frameworks-test  compare with PyTorch, Keras and ONNX"
	@echo "make pythons-test  the tests, on the oldest and the newest versions"
	@echo "make kills  end ranks of jobs at random moments (KILLS=… are options)"
	@echo "make soak   train and compile for an hour (SOAK=… are options)"
	@echo "make fuzz   random cases for ten minutes (FUZZ=… are options)"
	@echo "make sanitize  the kernels under sanitizers, a function in valgrind"
	@echo "make docs   build the pages and the API reference in build/docs"
	@echo "make lint   ruff only"
	@echo "make clean  remove what the other targets made"

demo:
	@.ci/venv examples
	@$(flags) $(python) examples/mnist.py

RANKS ?= 2

mpi-demo:
	@.ci/venv examples,mpi
	@$(flags) OMP_NUM_THREADS=1 $(venv)/bin/mpiexec -n $(RANKS) \
		$(python) -m mpi4py examples/mnist_mpi.py

bench:
	@.ci/venv bench
	@$(flags) $(python) -m benchmarks $(BENCH)

lint:
	@.ci/venv test "" "$(also)"
	$(python) -m ruff check .

# Files of tests go to one process for each core, of which four are enough.
pytest = $(python) -m pytest -n auto --maxprocesses 4 --dist loadfile \
	-m "not jobs"

test: lint
	@$(flags) $(pytest)

coverage: lint
	@$(flags) $(pytest) --cov=bnlasagne --cov-branch \
		--cov-report=term-missing:skip-covered

# The tests of the fused Ops.
kernels = $(foreach one,ops masks virtual_batches,tests/kernels/test_$(one).py)

# What users may have in their .theanorc. Theano's own modules then switch off
# denormal numbers, of which NumPy warns.
unsafe = base_compiledir=$(CURDIR)/$(venv)/fast-math,gcc.cxxflags=-O3 -ffast-math

flags-test:
	@.ci/venv test
	@if [ -e $(venv)/no-header ]; then echo "No C++ compiler: no flags."; else \
		THEANO_FLAGS="$(unsafe)" $(python) -m pytest -q \
		-W "ignore:The value of the smallest subnormal" \
		$(kernels) tests/layers/test_layer.py; fi

# The kernels as processors with shorter registers get them, from each compiler
# that there is. With -march, Theano adds no flags of its own after these. A
# compiler without OpenMP causes a warning.
widths = "-march=native" "-march=native -mno-avx512f -O1" \
	"-march=native -mno-avx512f -mno-avx2" "-march=native -mno-avx"

widths-test:
	@.ci/venv test
	@if [ -e $(venv)/no-header ]; then echo "No C++ compiler: no widths."; exit; fi; \
	for cxx in g++ clang++; do for flags in $(widths); do \
		if ! echo | $$cxx $$flags -E - >/dev/null 2>&1; then continue; fi; \
		echo "$$cxx $$flags:"; \
		THEANO_FLAGS="base_compiledir=$(CURDIR)/$(venv)/widths,cxx=$$cxx,gcc.cxxflags=$$flags" \
		$(pytest) -q -W ignore::RuntimeWarning $(kernels) \
		tests/test_determinism.py -k "not -py- \
		and (training or inference or mean or drift or outlier or extreme \
		or bits)" || exit 1; \
	done; done

# Ranks share the cores. One that hangs is a failure, which the time limit ends.
# Then the tests that start jobs of their own, which may fail.
mpi-test:
	@.ci/venv test
	@$(flags) for ranks in 1 2 3 4; do \
		echo "On $$ranks processes:"; \
		OMP_NUM_THREADS=1 MPIEXEC_TIMEOUT=900 $(venv)/bin/mpiexec \
			-n $$ranks $(python) -m mpi4py -m pytest -q \
			tests/parallel/ranks || exit 1; \
	done; \
	$(python) -m pytest -q -m jobs tests/parallel tests/examples

# On other Pythons, those that this machine has of the versions below, each in
# an environment of its own, with what is named there, or else the newest. The
# oldest and the newest run all tests, others a choice.
pythons ?= 3.8:oldest 3.12:numpy<2:core 3.13
core ?= tests/compat tests/test_house.py tests/kernels/test_ops.py \
	tests/networks tests/averages tests/layers README.md

pythons-test:
	@for one in $(foreach one,$(pythons),"$(one)"); do \
		echo "$$one" | { IFS=: read -r version also choice; \
			PYTHON= $(MAKE) --no-print-directory python-test \
				venv=".venv-$$version" version="$$version" \
				also="$$also" choice="$$choice"; } || exit 1; \
	done

python-test:
	@.ci/venv test "$(version)" "$(also)"; case $$? in \
	0) $(flags) $(pytest) -q $($(choice)) ;; \
	3) ;; \
	*) exit 1 ;; esac

frameworks-test:
	@.ci/venv frameworks
	@$(flags) $(python) -m pytest tests/weights/test_frameworks.py

fuzz:
	@.ci/venv test
	@$(flags) $(python) tests/fuzz $(FUZZ)

kills:
	@.ci/venv test
	@$(flags) $(python) tests/parallel/kills $(KILLS)

sanitize:
	@.ci/venv test
	@PYTHONPATH=tests $(python) -m sanitize $(SANITIZE)

# With one thread, so that a BLAS computes the same bits in each process.
soak:
	@.ci/venv test
	@$(flags) OMP_NUM_THREADS=1 $(python) tests/soak $(SOAK)

docs:
	@.ci/venv docs
	@$(flags) $(python) -m sphinx -EqW --keep-going docs build/docs
	@echo "Built the pages. Open build/docs/index.html"

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
