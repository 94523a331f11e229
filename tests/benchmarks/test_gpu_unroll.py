"""What the GPU benchmark times is what it has compared: precision, steps, augmentation, recordings."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_timing
from benchmarks.gpu_cases import TIMED_TOLERANCE, UNROLL_TOLERANCE, VARIANTS, EpochCase
from benchmarks.gpu_results import against_strongest
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations

from ..engines.triton.test_steps import Rounding
from ..support.triton import register

pytest.importorskip("triton", reason="the kernels' modules import Triton")

CPU = gpu.Device("cpu")
CASE = gpu.UnrollCase(3, 2, width=2, depth=1)


class Again:
    """Recordings that do their work again on the same tensors: the twins draw on the host, where no graph follows."""

    def __init__(self, device: torch.device) -> None:
        pass

    def record(self, work: Any) -> Any:
        result = work()

        def replay() -> None:
            for old, new in zip(_flat(result), _flat(work()), strict=True):
                old.copy_(new)

        return replay, result


class Spoilt(Again):
    """Recordings that replay something else, which no plain run shows."""

    def record(self, work: Any) -> Any:
        replay, result = super().record(work)

        def spoilt() -> None:
            replay()
            if isinstance(result, tuple):  # the gradients
                for tensor in _flat(result):
                    tensor.mul_(1.5)

        return spoilt, result


class Failing(Again):
    def record(self, work: Any) -> Any:
        raise RuntimeError("injected")


def _flat(result: Any) -> list[Tensor]:
    return [tensor for tensor in (result if isinstance(result, tuple) else (result,)) if tensor is not None]


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """Ours with the kernels' twins and recordings."""
    return register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Again))


def run(variant: str = "ours", case: gpu.UnrollCase = CASE) -> list[gpu.Rival]:
    return gpu.run_unroll(case, CPU, "triton", rounds=2, seconds=60, variant=variant)


def test_what_is_timed_is_replayed_and_compared_with_the_same_augmentation(recording, monkeypatch):
    seen: list[tuple[int, Any, int, int]] = []
    ours = gpu.Unroll.ours

    def watched(self: gpu.Unroll, how: Any, steps: int, **options: Any) -> Any:
        before = gpu.recorded(), gpu_timing.replays()
        found = ours(self, how, steps, **options)
        made, replays = gpu.recorded() - before[0], gpu_timing.replays() - before[1]
        seen.append((steps, options.get("seed"), made, replays))
        return found

    monkeypatch.setattr(gpu.Unroll, "ours", watched)
    plain, rival = run()
    # In full float32; plainly, recorded, replayed; two timed; and one of the same to be compared.
    warm = [(2, None, 0, 0), (2, None, 2, 1), (2, None, 0, 1)]
    assert seen == [(2, None, 0, 0), *warm, *[(2, None, 0, 1)] * 2, (2, 0, 0, 1)]
    assert rival.timed.error < 1e-4 and rival.timed.tolerance == TIMED_TOLERANCE["tf32"]
    assert plain.timed.tolerance is None and plain.timed.error == rival.timed.plain
    row = rival.row()
    assert row["as_timed"]["how"].startswith("tf32, T=2, the same augmentation") and row["error"] < 1e-4


def test_draws_are_those_of_our_side(recording):
    """Other draws are far off: the comparison would be one of different problems."""
    problem = gpu.Unroll(CASE, CPU, "triton")
    problem._truths[2] = problem.plain(2), None
    rival = gpu.Rival("ours", lambda: None, steps=2)
    rival.check = 0.0
    for _ in range(2):
        problem.ours(VARIANTS["ours"], 2)
    assert problem.as_timed(rival, VARIANTS["ours"]).error > 0.3


def test_a_wrong_replay_gets_no_row(monkeypatch):
    register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Spoilt))
    with pytest.raises(SystemExit, match="ours as it is timed is off by 5.0e-01; no speed is reported"):
        run()


def test_a_run_that_was_not_replayed_gets_no_row(monkeypatch):
    register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Failing))
    with pytest.raises(SystemExit, match="is no replay of the recordings that were timed"):
        run()
    rival = run("ours, one launch at a time")[1]
    assert rival.timed.error < 1e-4, "which is not to be replayed"


def test_steps_of_epochs_are_replays_too(monkeypatch):
    case = EpochCase(9, expert=False, width=2)
    for recorder in (Again, Failing):
        register(monkeypatch, TritonEngine(Operations(naive=True), recorder=recorder))
        if recorder is Again:
            ours = gpu.run_epochs(case, CPU, "triton", rounds=1)[1]
            assert gpu.recorded() == 1 and ours.check < 1e-3 and ours.timed.error < 1e-3
        else:
            with pytest.raises(SystemExit, match="no replays of the recordings"):
                gpu.run_epochs(case, CPU, "triton", rounds=1)


@pytest.mark.parametrize(
    ("variant", "yardstick", "tf32"),
    [
        ("ours", "plain loop", True),
        ("ours, float32", "plain loop, float32", False),
        ("ours, bf16", "plain loop, bf16 autocast", True),
    ],
)
def test_both_sides_have_the_same_precision(recording, monkeypatch, variant, yardstick, tf32):
    seen: dict[str, set[tuple[bool, bool, bool]]] = {"plain": set(), "ours": set()}
    timing: list[bool] = []

    def note(side: str) -> None:
        settings = (
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.benchmark,
        )
        if timing:
            seen[side].add(settings)

    plain, ours, measure = gpu.Unroll.plain, gpu.Unroll.ours, gpu.measure
    monkeypatch.setattr(gpu.Unroll, "plain", lambda *args, **options: (note("plain"), plain(*args, **options))[1])
    monkeypatch.setattr(gpu.Unroll, "ours", lambda *args, **options: (note("ours"), ours(*args, **options))[1])

    def measured(*args: Any, **options: Any) -> None:
        timing.append(True)
        measure(*args, **options)
        timing.clear()

    monkeypatch.setattr(gpu, "measure", measured)
    rivals = run(variant)
    assert [rival.name for rival in rivals] == [yardstick, variant]
    assert seen == {"plain": {(tf32, tf32, True)}, "ours": {(tf32, tf32, False)}}, "cuDNN tries algorithms for them"
    assert rivals[1].timed.tolerance == TIMED_TOLERANCE[VARIANTS[variant].precision]
    bf16 = rivals[0].timed.error
    assert bf16 > 1e-3 if "bf16" in variant else bf16 < 1e-4


def test_the_yardstick_of_another_precision_is_shown(recording, monkeypatch):
    case = replace(CASE, more=("ours, float32",))
    monkeypatch.setattr(gpu, "TINY", {"tiny": case})
    given = {"device": "cpu", "backend": "triton", "rounds": 2, "case_seconds": 20.0, "tiny": True, "compile": False}
    rows = gpu.run_case("unroll", "tiny | ours, float32", gpu.argparse.Namespace(**given))
    assert [row["rival"] for row in rows] == ["plain loop, float32", "ours, float32"] and rows[1]["times_faster"] > 0
    text = gpu.table(rows).splitlines()
    assert len({len(line) for line in text}) == 1 and text[0].endswith("error  as timed    plain")


def test_where_the_plain_loop_does_not_fit_the_truth_has_constant_memory(monkeypatch):
    problem = gpu.Unroll(CASE, CPU, "autograd")
    truth, plain = problem._truth(2)
    assert plain == 0.0
    monkeypatch.setattr(gpu.Unroll, "plain", lambda *args, **options: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    again, functional = gpu.Unroll(CASE, CPU, "autograd"), gpu.Unroll._functional

    def watched(*args: Any) -> Any:
        assert sys.exc_info() == (None, None, None), "which would hold the memory that ran out"
        return functional(*args)

    monkeypatch.setattr(gpu.Unroll, "_functional", watched)
    other, plain = again._truth(2)
    assert plain is None and all(float((a - b).norm() / b.norm()) < 1e-4 for a, b in zip(other, truth, strict=True))


def test_the_strongest_rival_is_named_and_set_against_ours():
    def row(
        rival: str, faster: float | None, *, case: str = "CIFAR-10 IPC 10", suite: str = "unroll"
    ) -> dict[str, Any]:
        return {"suite": suite, "case": case, "rival": rival, "status": "ok", "times_faster": faster} | {
            "steps": 80,
            "peak_mib": 1.0,
        }

    rows = [row("plain loop", None), row("ours", 9.0), row("ours, bf16", 20.0)]
    assert "CIFAR-10 IPC 10: strongest rival: not measured (at least 3 asked for)" in gpu.verdict(rows)
    assert set(against_strongest(rows)) < set(gpu.verdict(rows).splitlines())
    rows += [row("plain loop, CUDA graph", 2.0)]
    assert "rival: plain loop, CUDA graph, ratio 4.5 (at least 3 asked for): met" in gpu.verdict(rows)
    rows += [row("plain loop, torch.compile", 4.0, case="IPC 10, torch.compile"), row("ours", 30.0, case="batch 500")]
    assert "rival: plain loop, torch.compile, ratio 2.2 (at least 3 asked for): missed" in gpu.verdict(rows)
    slower = [row("ours", 2.0), row("plain loop, channels_last", 0.5)]
    assert "rival: the eager loop, ratio 2.0" in gpu.verdict(slower)
    trained = [row("ours, one by one", 1.0), row("ours, together", 8.0), row("plain torch, CUDA graph", 2.0)]
    trained = [{**each, "case": "8 experts", "suite": "epochs"} for each in trained]
    assert "8 experts: strongest rival: plain torch, CUDA graph, ratio 4.0" in gpu.verdict(trained)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_errors_do_not_grow_with_the_number_of_steps(monkeypatch, precision):
    """Why runs of any length have the tolerance of a few steps; `-s` prints the errors."""
    register(monkeypatch, TritonEngine(Rounding(precision)))
    errors: dict[int, list[float]] = {}
    for steps in (1, 2, 5, 20):
        problem = gpu.Unroll(gpu.UnrollCase(4, steps, width=16), CPU, "triton")
        doubles = ("theta", "target", "images", "labels", "lr")
        problem.module.double()
        for name in doubles:
            setattr(problem, name, getattr(problem, name).double())
        truth = problem.plain(steps, augmented=False)
        found: tuple[Tensor, ...] = problem.ours(VARIANTS["ours"], steps, augmented=False, precision="auto")
        errors[steps] = [float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]
        print(precision, steps, [f"{error:.1e}" for error in errors[steps]])
    assert max(errors[20]) < max(errors[1]) < TIMED_TOLERANCE[precision] and max(errors[20]) > 1e-5
    assert UNROLL_TOLERANCE < TIMED_TOLERANCE[precision]
