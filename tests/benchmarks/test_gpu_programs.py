"""The programs of single stages of `benchmarks.gpu_check`, run without a GPU or with one that stands in."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu_timing
from benchmarks.gpu_check import carried, ceilings, dealing, profiling, reproducing, routes, stages
from pad_fast.kernels.conv.choices import Choice
from pad_fast.kernels.conv.launches import KERNELS

from ..support import golden as golden_files
from ..support.paths import ROOT
from ..support.triton import register

pytest.importorskip("triton", reason="the kernels' modules import Triton")


def compiled(cache: Path, *words: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """The compile stage's program, or another one, in a process that interprets nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_STORE_BINARY_ONLY": "1"}
    what = ["-c", program] if program else ["-m", "benchmarks.gpu_check.compiling"]
    command = [sys.executable, *what, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


LAUNCH = """
import sys, torch, triton
from triton import knobs
from triton.runtime.jit import JITFunction
from benchmarks.gpu_check.variants import Card, matching

hits = []
triton.runtime.driver.set_active(Card(int(sys.argv[1])))
knobs.compilation.listener = lambda **said: hits.append(said["cache_hit"])
# As a launch, but for the last thing it does.
JITFunction.__getitem__ = lambda self, grid: lambda *a, **k: self.run(*a, grid=grid, warmup=True, **k)
matching(tiny=True)
print(sum(hits), len(hits))
"""


@pytest.mark.slow
def test_a_launch_finds_what_was_compiled_ahead_also_where_the_cache_was_moved(tmp_path):
    """Triton's own launcher and compiler, for a card that stands in: the cache has every kernel they look for."""
    file, words = tmp_path / "compile.json", ("--stages", "matching", "--capability", "90", "--tiny", "--jobs", "2")
    first = compiled(tmp_path / "a", *words, "--seconds", "300", "--json", str(file))
    assert first.returncode == 0, first.stderr
    found = json.loads(file.read_text())
    count = found["stages"]["matching"]
    assert (found["variants"], found["cached"], found["compiled"], found["left"]) == (count, 0, count, 0) and count > 5
    assert f"{count} different ones, 0 are in the cache" in first.stdout and "fit into the" in first.stdout
    launched = compiled(tmp_path / "a", "90", program=LAUNCH)
    assert launched.stdout.split() == [str(count), str(count)], launched.stderr
    assert compiled(tmp_path / "a", "80", program=LAUNCH).stdout.split()[0] == "0", "another card has other kernels"

    shutil.move(tmp_path / "a", tmp_path / "b")
    again = compiled(tmp_path / "b", *words, "--seconds", "0.1", "--json", str(file))
    assert json.loads(file.read_text())["cached"] == 0, "Triton looks where the files were"
    assert carried.settle(tmp_path / "b") >= count
    carried.slim(tmp_path / "b")
    assert not [*(tmp_path / "b").rglob("*.source")] and [*(tmp_path / "b").rglob("*.cubin")]
    again = compiled(tmp_path / "b", *words, "--seconds", "300")
    assert f"{count} were compiled already, 0 are now, 0 are left" in again.stdout, again.stderr
    launched = compiled(tmp_path / "b", "90", program=LAUNCH)
    assert launched.stdout.split() == [str(count), str(count)], launched.stderr


def test_compiling_ends_when_its_time_is_up(tmp_path):
    file = tmp_path / "compile.json"
    words = ("--stages", "matching,nothing", "--capability", "90", "--tiny", "--seconds", "0.1", "--json", str(file))
    done = compiled(tmp_path / "a", *words)
    found = json.loads(file.read_text())
    assert done.returncode == 0 and found["left"] + found["compiled"] == found["variants"] > 5
    assert found["left"] > 0 and f"{found['left']} are left" in done.stdout


def test_golden_files_go_along_and_are_found(monkeypatch, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "build" / "carried" / "golden"
    source.mkdir()
    for name in ("unroll_plain.npz", "scores.npz", "unroll_width128.npz"):
        (source / name).write_bytes(b"x" * 2**19)
    said = carried.bundle([source, ROOT / "tests" / "golden"], folder)
    assert {"unroll_plain.npz", "unroll_width128.npz", "unroll_gray_28px.npz"} <= {*os.listdir(folder)}
    assert "scores.npz" not in os.listdir(folder) and re.search(r"\d+ files, \d+\.\d MiB", said)
    monkeypatch.delenv("PAD_FAST_GOLDEN", raising=False)
    assert carried.environment(tmp_path / "build" / "carried")["PAD_FAST_GOLDEN"] == str(folder)
    monkeypatch.setattr(golden_files, "ROOT", tmp_path)
    assert golden_files.golden_path("unroll_plain.npz") == folder / "unroll_plain.npz"
    with pytest.raises(pytest.skip.Exception, match="unroll_loss_mask_2.npz"):
        golden_files.golden_path("unroll_loss_mask_2.npz")


def test_gpu_tests_read_no_other_golden_files():
    read = [
        name
        for file in {name.partition("::")[0] for name in dealing.listed() if name.startswith(dealing.ENGINE_TESTS)}
        for name in re.findall(r'golden\(f?"([^"]+)"', (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert read and all(fnmatch.fnmatch(name, carried.NEEDED) for name in read)


def test_a_profile_sets_measured_times_beside_counted_floors():
    costs = {"conv": {"launches": 2.0, "bytes": 2e6, "flops": 4e9, "floor": 1e-5}}
    rows = profiling.joined(costs, {"conv": (2, 1e-4), "cudnn_thing": (1, 2e-4)})
    assert [row["kernel"] for row in rows] == ["cudnn_thing", "conv"]
    assert rows[1]["us_per_launch"] == pytest.approx(50) and rows[1]["times_floor"] == pytest.approx(10)
    assert rows[1]["tflops"] == pytest.approx(40) and rows[1]["gbs"] == pytest.approx(20)
    text = profiling.table("X", rows)
    assert (
        "0.30 ms in kernels, floor 0.01 ms" in text[0] and text[-1].split() == "conv 2 50.00 40.0 20 5.000 10.0".split()
    )
    assert "not timed" in profiling.table("X", profiling.joined(costs, {}))[0]


def test_without_a_gpu_the_launches_of_the_headline_are_counted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(profiling, "CASES", ("CIFAR-10 IPC 1",))
    monkeypatch.setattr(profiling, "STEPS", 2)
    monkeypatch.setattr(profiling, "register", lambda engine: register(monkeypatch, engine))
    monkeypatch.setattr(sys, "argv", ["x", "--device", "cpu", "--json", str(tmp_path / "profile.json")])
    profiling.main()
    rows = json.loads((tmp_path / "profile.json").read_text())["cases"]["CIFAR-10 IPC 1"]
    named = {row["kernel"]: row for row in rows}
    assert named["convolution_dual_kernel"]["flops"] > 1e9 and all(row["bytes"] > 0 for row in rows)
    assert "no GPU: counted, not timed" in capsys.readouterr().out


@pytest.mark.parametrize("status", [0, 1])
def test_what_ncu_says_is_kept(monkeypatch, tmp_path, status):
    tool = tmp_path / "ncu"
    tool.write_text(
        f'#!/bin/sh\necho "==ERROR== ERR_NVGPUCTRPERM"\n[ {status} = 0 ] && echo \'"ID","kernel"\'\nexit {status}\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wanted = ["ncu, some_kernel:", '"ID","kernel"' if status == 0 else "==ERROR== ERR_NVGPUCTRPERM"]
    assert profiling.by_ncu(["some_kernel"], 20) == wanted
    monkeypatch.setenv("PATH", "")
    assert profiling.by_ncu(["some_kernel"], 20) == ["ncu is not installed"]


def test_routes_are_a_table_of_both_times(monkeypatch, tmp_path, capsys):
    assert {*routes.PRODUCTS} == {*KERNELS}
    known: dict[Any, Choice] = {}

    def choose(op: str, layer: Any, kernel: Any) -> str:
        known[op, layer] = Choice("cudnn" if op == "forward" else "triton", 0.5, 0.25, 1e-4)
        return known[op, layer].route

    monkeypatch.setattr(routes.cudnn, "choose", choose)
    monkeypatch.setattr(routes.cudnn, "choices", lambda: known)
    monkeypatch.setattr(sys, "argv", ["x", "--device", "cpu", "--json", str(tmp_path / "routes.json")])
    routes.main()
    rows = json.loads((tmp_path / "routes.json").read_text())["rows"]
    assert len(rows) == len(KERNELS) * len([*routes.layers(torch.device("cpu"))])
    first = rows[0]
    assert (first["op"], first["route"], first["triton_ms"], first["cudnn_ms"]) == ("forward", "cudnn", 0.5, 0.25)
    assert first["cudnn_tflops"] == pytest.approx(2 * 9 * 100 * 256 * 128 * 128 / 0.25e-3 / 1e12)
    assert "1 x 100 x 16 x 16, 128 -> 128" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["x", "--device", "cpu"])
    routes.main()
    assert "nothing was measured" in capsys.readouterr().out


def test_ceilings_are_rates():
    rows = ceilings.measured(gpu_timing.Device("cpu"))
    assert [row["name"] for row in rows] == ["copy", "product, tf32", "product, bf16"]
    assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in rows)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten classes of raw images, few and noisy."""
    draws = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in range(10):
            folder = tmp_path / "pictures" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (20 * label + draws.integers(0, 60, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_raw_images_become_an_accuracy(monkeypatch, tmp_path, pictures, capsys):
    archive = tmp_path / "pictures.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(pictures, arcname="pictures")
    monkeypatch.setattr(reproducing, "FIRST", 2)
    counts = iter([3, 0])
    monkeypatch.setattr(reproducing, "next_count", lambda row, seconds: next(counts))
    file = tmp_path / "reproduce.json"
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(archive), "--device", "cpu", "--json", str(file)])
    reproducing.main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["iterations"] for row in rows] == [2, 3]
    assert all(0 <= row["accuracy"]["PAD"]["mean"] <= 100 for row in rows)
    assert rows[1]["stages"]["experts"] <= rows[0]["stages"]["experts"], "they are kept"
    assert "3 iterations:" in capsys.readouterr().out


def test_as_many_iterations_as_fit():
    row = {"iterations": 20, "stages": {"distill": 2.0, "evaluate": 5.0, "data": 1.0}}
    assert reproducing.next_count(row, 1000) == 200 and reproducing.next_count(row, 20) == 100
    assert reproducing.next_count(row, 12) == 0
    assert stages.STAGES["reproduce"].seconds < 180
