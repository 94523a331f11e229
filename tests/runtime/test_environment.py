"""The report of `pad-fast env`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness import machine
from pad_fast._version import __version__
from pad_fast.engines import cpu
from pad_fast.errors import BackendError
from pad_fast.runtime import environment as module
from pad_fast.runtime import extension
from pad_fast.runtime.environment import cpu_name, environment, format_environment


def test_names_versions_and_hardware() -> None:
    values = environment()
    assert values["pad_fast"] == __version__
    assert values["python"] == platform.python_version()
    assert values["torch"] == torch.__version__
    assert values["numpy"] == importlib.metadata.version("numpy")
    assert values["threads"] == torch.get_num_threads()
    assert values["cpu"]
    assert values["extension"]["available"] == extension.available()
    assert values["cuda"]["available"] == torch.cuda.is_available()
    assert json.loads(json.dumps(values)) == values


def test_prints_one_aligned_line_per_entry() -> None:
    values = environment()
    lines = format_environment(values).splitlines()
    assert len(lines) == len(values)
    column = max(len(key) for key in values) + 2
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert lines[0] == f"{'pad fast':<{column}}{__version__}"


def test_does_not_import_triton() -> None:
    look = "from pad_fast.runtime.environment import environment; environment()"
    program = f"import sys; {look}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    values = environment()
    assert values["triton"] is None
    assert values["torchvision"] is not None
    assert "not installed" in format_environment(values)


def test_a_missing_extension_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_module", None)
    monkeypatch.setattr(extension, "_reason", "no C++ compiler found")
    values = environment()
    assert values["extension"] == {"available": False, "detail": "no C++ compiler found"}
    assert "no: no C++ compiler found" in format_environment(values)


@pytest.mark.parametrize("cuda", [True, False])
def test_the_extension_is_described(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    info = {"compiler": "gcc 12.2.0", "standard": "C++17", "instructions": "avx2", "cuda": cuda}
    monkeypatch.setattr(extension, "available", lambda: True)
    monkeypatch.setattr(extension, "build_info", lambda: info)
    monkeypatch.setattr(extension, "build_record", lambda: {"cuda_reason": "nvcc not found"})
    detail = environment()["extension"]["detail"]
    ending = "with CUDA kernels" if cuda else "no CUDA kernels (nvcc not found)"
    assert detail == f"gcc 12.2.0, C++17, scores by avx2, {ending}"


@pytest.mark.skipif(not extension.available(), reason=extension.unavailable_reason())
def test_the_instructions_are_those_the_engine_runs_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_with() -> str:
        size = {"channels": 1, "height": 4, "width": 4, "pad_first": 1, "depth": 1, "net_width": 2, "classes": 2}
        return cpu.make_plan(**size, dtype="f32", precision="high", threads=1).isa

    monkeypatch.delenv("PAD_FAST_ISA", raising=False)
    best = extension.instruction_sets()[0]
    assert run_with() == best
    values = environment()
    assert (values["cpu_instructions"], values["torch_instructions"]) == (
        best.upper(),
        torch.backends.cpu.get_cpu_capability(),
    )
    assert machine()["cpu_instructions"] == best.upper()
    monkeypatch.setenv("PAD_FAST_ISA", "baseline")
    assert run_with() == "baseline"
    assert environment()["cpu_instructions"] == machine()["cpu_instructions"] == "BASELINE"
    monkeypatch.setenv("PAD_FAST_ISA", "mmx")
    with pytest.raises(BackendError, match="isa='mmx' is not available on this machine; available: .*baseline"):
        environment()


def test_cuda_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert environment()["cuda"] == {"available": True, "detail": "CUDA 13.0, card 0, card 1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment()["cuda"] == {"available": False, "detail": "no CUDA device found"}
    monkeypatch.setattr(torch.version, "cuda", None)
    assert environment()["cuda"] == {"available": False, "detail": "this torch was built without CUDA"}


def test_cpu_name_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, encoding: str | None = None) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(module.Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert cpu_name() == "riscv64"
