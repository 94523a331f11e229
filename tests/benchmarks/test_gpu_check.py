"""The GPU benchmarks and the counted model, run without a GPU as far as they go."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, rivals
from pad_fast.engines import registry

SMALL = gpu.UnrollCase(4, 4, width=4, more=("ours, 8 trajectories",))


def options(**changes: Any) -> argparse.Namespace:
    given = {"device": "cpu", "backend": "autograd", "rounds": 2, "case_seconds": 20.0, "tiny": True, "compile": False}
    return argparse.Namespace(**{**given, **changes})


@pytest.mark.parametrize(("suite", "case"), gpu.cases(list(gpu.SUITES), tiny=True), ids=str)
def test_every_suite_runs(suite, case):
    rows = gpu.run_case(suite, case, options())
    case, _, variant = case.partition(" | ")
    assert not variant or [row["rival"] for row in rows] == [variant]
    assert all(row["status"] == "ok" and row["ms"]["n"] == 2 for row in rows)
    ours = [row for row in rows if row["rival"].startswith("ours")]
    assert suite == "matching" or all(row["error"] < 1e-4 and row["times_faster"] > 0 for row in ours)
    assert suite == "matching" or ours, "nothing of ours was measured"
    assert case in gpu.table(rows)


def test_out_of_memory_keeps_its_row_and_fewer_steps_are_measured(monkeypatch):
    plain = gpu.Unroll.plain

    def cramped(self: gpu.Unroll, steps: int, **options: Any) -> Any:
        if steps > 2 or self.case.batch > 8:
            raise torch.OutOfMemoryError("injected")
        return plain(self, steps, **options)

    monkeypatch.setattr(gpu.Unroll, "plain", cramped)
    case = gpu.UnrollCase(4, 8, width=4)
    rivals = gpu.run_unroll(case, gpu.Device("cpu"), "autograd", rounds=2, seconds=20)
    rows = gpu.with_ratios([{"suite": "unroll", "case": "x", **rival.row()} for rival in rivals])
    assert [(row["rival"], row["status"]) for row in rows] == [
        ("plain loop", "out of memory"),
        ("ours", "ok"),
        ("plain loop, fewer steps", "ok"),
    ]
    assert rows[1]["times_faster"] == pytest.approx(rows[2]["ms_per_step"] / rows[1]["ms_per_step"])
    assert "out of memory" in gpu.table(rows)


def test_the_compiled_loop_computes_the_same_and_is_timed_beside_the_others(monkeypatch):
    compiled, really = [], torch.compile

    def traced(step: Any) -> Any:
        compiled.append(step)
        return really(step, backend="aot_eager")  # all but the generated code, which takes a minute to make

    monkeypatch.setattr(rivals.torch, "compile", traced)
    case = gpu.UnrollCase(3, 3, width=4, compiled=True)
    measured = gpu.run_unroll(case, gpu.Device("cpu"), "autograd", rounds=1, seconds=20)
    (rival,) = [rival for rival in measured if rival.name == "plain loop, torch.compile"]
    assert len(compiled) == 1 and rival.check is not None and rival.check < 1e-4 and len(rival.milliseconds) == 1


def test_no_speed_is_reported_of_something_else(monkeypatch):
    monkeypatch.setattr(gpu.Unroll, "check", lambda self, how: self.ours(how, 1, augmented=False)[0].sum() * 0 + 0.5)
    with pytest.raises(SystemExit, match="no speed is reported"):
        gpu.run_unroll(SMALL, gpu.Device("cpu"), "autograd", rounds=1, seconds=5)
    monkeypatch.setattr(gpu.Unroll, "check", lambda self, how: 0.0)
    with pytest.raises(SystemExit, match="ours ran on"):
        gpu.run_unroll(SMALL, gpu.Device("cpu"), "autograd", rounds=1, seconds=5)


def test_nothing_is_recorded_while_it_is_timed(monkeypatch):
    counts = iter([0, 1])
    monkeypatch.setattr(gpu, "recorded", lambda: next(counts))
    rival = gpu.Rival("ours", lambda: None, steps=1)
    with pytest.raises(SystemExit, match="recorded while they were timed"):
        gpu.measure(gpu.Device("cpu"), [rival], rounds=1, seconds=1)


def test_no_process_has_more_variants_than_recordings_are_kept():
    assert gpu.recorded() == registry._engines["triton"].graphs.recorded
    names = [name for _, name in gpu.cases(["unroll"], tiny=False)]
    assert len(names) == len(set(names)) == sum(1 + len(case.more) for case in gpu.UNROLLS.values())


def test_a_case_that_fails_becomes_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--backend", "triton", "--tiny", "--rounds", "1", "--suites", "unroll"]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--json", str(file)])
    with pytest.raises(SystemExit, match="some cases failed"):
        gpu.main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["case"] for row in rows] == ["tiny", "tiny | ours, 8 trajectories"]
    assert all(row["status"] == "failed" and "needs a CUDA device" in row["reason"] for row in rows)
    assert "needs a CUDA device" in capsys.readouterr().out
    errors = file.with_suffix(".stderr.log").read_text()
    assert errors.count("Traceback") >= 2 and "== unroll, tiny | ours, 8 trajectories" in errors
    assert gpu.in_process("unroll", "tiny", ["--device", "cpu"], 0.1)[0]["reason"] == "took longer than 0 s"


def test_measured_is_set_against_what_was_asked():
    rows = [
        {"case": "CIFAR-10 IPC 1", "rival": "ours", "status": "ok", "times_faster": 16.0, "peak_mib": 70, "steps": 80},
        {"case": "CIFAR-10 IPC 10", "rival": "ours", "status": "ok", "times_faster": 7.0, "peak_mib": 300, "steps": 80},
        {
            "case": "CIFAR-10 IPC 500",
            "rival": "ours",
            "status": "ok",
            "times_faster": 6.0,
            "peak_mib": 3000,
            "steps": 40,
        },
        {
            "case": "CIFAR-10 IPC 1000",
            "rival": "ours",
            "status": "ok",
            "times_faster": 6.0,
            "peak_mib": 3100,
            "steps": 100,
        },
    ]
    text = gpu.verdict(rows)
    assert "CIFAR-10 IPC 1: 16.0 times faster, 15 asked for: met" in text
    assert "CIFAR-10 IPC 10: 7.0 times faster, 8 asked for: missed" in text
    assert "batch 500: not measured" in text
    assert "batch 1000: 3000 MiB at T=40, 3100 MiB at T=100, at most 6144 and flat asked for: met" in text
    rows[3]["peak_mib"] = 5000
    assert text != gpu.verdict(rows) and "5000 MiB at T=100, at most 6144 and flat asked for: missed" in gpu.verdict(
        rows
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The counted model, with an engine that leaves its kernels out."""
    pytest.importorskip("triton", reason="the kernels' modules import Triton")
    from benchmarks import model
    from pad_fast.engines import registry

    engine = model.TritonEngine(model.Operations())
    monkeypatch.setitem(registry._engines, "triton", engine)
    return model


def test_the_model_is_linear_in_steps_and_batch(model):
    setting = model.Setting("small", 12, 6, 5, resolution=16, depth=2, width=8)
    predicted, counted = model.our_total(setting), model.Total.of(model.ours(setting, 5), model.GRAPH_LAUNCH)
    assert vars(predicted) == pytest.approx(vars(counted), rel=1e-9)
    predicted = model.plain_total(setting)
    counted = model.Total.of(model.plain(setting, 6, 5), model.EAGER_LAUNCH)
    assert vars(predicted) == pytest.approx(vars(counted), rel=1e-9)
    assert predicted.launches > 3 * model.our_total(setting).launches


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts on the CPU, where kernels are interpreted")
def test_what_is_counted_is_what_is_launched(model, monkeypatch):
    setting = model.Setting("tiny", 3, 2, 2, classes=3, resolution=6, depth=2, width=3)
    counted = Counter((work.name, work.bytes) for work in model.ours(setting, 2) if work.name.endswith("_kernel"))

    monkeypatch.setattr(model.launch, "dry_run", model.launch.counting)
    really = Counter((work.name, work.bytes) for work in model.ours(setting, 2) if work.name.endswith("_kernel"))
    assert counted == really and sum(counted.values()) > 40


def test_the_table_goes_between_its_marks(model, tmp_path):
    document = tmp_path / "page.md"
    document.write_text(f"before\n{model.BEGIN}\nold\n{model.END}\nafter\n")
    total = {"launches": 1234.0, "bytes": 5e9, "flops": 6e12, "seconds": 0.007}
    rows = [{"setting": "S", "batch": 2, "steps": 3, "ours": total, "plain": total, "times_faster": 1.0}]
    model.update(document, model.markdown(rows))
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| S | 2 | 3 | 1,234 / 1,234 | 5.0 / 5.0 | 6.00 / 6.00 | 7.0 / 7.0 | 1.0 |" in text


def test_the_document_has_every_published_setting(model):
    text = (Path(__file__).parents[2] / "docs" / "gpu_engine.md").read_text(encoding="utf-8")
    table = text.partition(model.BEGIN)[2].partition(model.END)[0]
    for setting in model.SETTINGS:
        assert f"| {setting.name} | {setting.batch} | {setting.steps} |" in table
