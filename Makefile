# Every target but gpu-check works alone in a fresh clone: the environment .venv is made, and brought up to date, when
# needed.
#   PYTHON=python3.12         the interpreter that makes .venv
#   PIP_FLAGS="--index-url …" other package indexes, e.g. https://download.pytorch.org/whl/cpu for a torch without CUDA
PYTHON ?= python3
PIP_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) -c constraints.txt
NATIVE := $(shell find csrc -type f)

.PHONY: demo test lint types sanitize aarch64 kernels bench bench-quick gpu-check clean

demo: $(VENV)/.installed
	$(BIN)/pad-fast distill

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest --cov --numprocesses auto --dist loadfile

lint: $(VENV)/.installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(wildcard tests/native/*.cpp)

# mypy looks for pad_fast.kernels inside of pad_fast/, where installing puts it: it gets a tree of links.
TYPED := build/typed
types: $(VENV)/.installed
	rm -rf $(TYPED)/pad_fast $(TYPED)/benchmarks
	mkdir -p $(TYPED)/pad_fast
	ln -s $(CURDIR)/pad_fast/* $(CURDIR)/kernels $(TYPED)/pad_fast/
	ln -s $(CURDIR)/benchmarks $(TYPED)/
	cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p pad_fast -p benchmarks

# The extension with AddressSanitizer and UBSan, installed beside a copy of the tests that call into it.
SANITIZE := -fsanitize=address,undefined
sanitize: $(VENV)/.installed
	rm -rf build/sanitize
	CXXFLAGS="-O1 -g -fno-omit-frame-pointer $(SANITIZE) -fno-sanitize-recover=undefined" LDFLAGS="$(SANITIZE)" \
	  PAD_FAST_CUDA=0 PAD_FAST_REQUIRE_EXTENSION=1 $(PIP) --no-build-isolation --no-deps --target build/sanitize .
	cp -r tests build/sanitize/tests
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	  $(CURDIR)/$(BIN)/python -m pytest -q tests/engines/test_cpu.py tests/scoring/test_native.py -k "not instruction_set"
	$(BIN)/python -m tests.native.cases build/native/cases.bin
	$${CXX:-g++} -O1 -g -std=c++17 -pthread -fsanitize=thread -ffp-contract=fast -Wno-psabi -Icsrc $(DRIVER) \
	  -o build/native/unroll-threads
	TSAN_OPTIONS=halt_on_error=1 build/native/unroll-threads build/native/cases.bin

# The CPU engine cross-compiled for 64-bit ARM and emulated, without Python: golden cases in float64 to 1e-9. Takes a
# cross compiler and QEMU (on Debian: apt-get install g++-aarch64-linux-gnu qemu-user).
AARCH64_CXX ?= aarch64-linux-gnu-g++
EMULATOR ?= qemu-aarch64
DRIVER := csrc/unroll/isa/isa_baseline.cpp csrc/unroll/runtime.cpp csrc/parallel.cpp tests/native/unroll.cpp
aarch64: $(VENV)/.installed
	$(BIN)/python -m tests.native.cases build/native/cases.bin
	$(AARCH64_CXX) -O2 -std=c++17 -pthread -static -ffp-contract=fast -Wno-psabi -Wall -Wextra -Werror -Icsrc \
	  $(DRIVER) -o build/native/unroll-aarch64
	$(EMULATOR) build/native/unroll-aarch64 build/native/cases.bin

# The kernels under another Triton, in an environment of its own: ahead-of-time compiles, and everything interpreted.
#   make kernels TRITON=3.6.0
TRITON ?= 3.6.0
OTHER := build/triton-$(TRITON)
OTHER_PIP = $(OTHER)/bin/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) -c $(OTHER)/constraints.txt
kernels:
	$(PYTHON) -m venv $(OTHER)
	grep -vE '^(triton|numpy)==' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER_PIP) "$$(grep '^torch==' constraints.txt)"
	$(OTHER_PIP) setuptools pybind11 ninja
	# NumPy from 2.4 on no longer turns arrays of one number into numbers, which Triton 3.6's interpreter does.
	$(OTHER_PIP) --no-build-isolation --editable '.[test]' triton==$(TRITON) $(if $(filter 3.6.%,$(TRITON)),'numpy<2.4')
	$(OTHER)/bin/python -m pytest -q --numprocesses auto --dist loadfile $(KERNEL_TESTS)
KERNEL_TESTS := tests/kernels tests/engines/triton tests/verification

# For a machine with a GPU and no network: no environment is made, $(PYTHON) is used as it is (torch, Triton, pytest).
#   STAGE=smoke,headline      some of the stages
OUT ?= build/gpu-results
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(OUT) $(if $(STAGE),--stage $(STAGE))

# Every suite on the CPU: under 15 minutes on two cores, and a smoke test of the same under 2.
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.installed
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf $(VENV) build dist *.egg-info pad_fast/_C.*.so pad_fast/_build.json
	rm -rf .coverage .mypy_cache .pytest_cache .ruff_cache

# torch first and pinned: left to the resolver, it can bring gigabytes of CUDA packages that a CPU never uses.
# The build tools next, because the extension is built without isolation: rebuilds then only compile what changed.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt pad_fast/_version.py $(NATIVE) | $(BIN)/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) setuptools pybind11 ninja
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
