"""Recorded work on the CPU, with an emulation of CUDA graphs: whole unrolls, and recordings by themselves."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast import ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task
from pad_fast.engines.base import Inputs, Passes
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.graphs import CudaRecorder, Graphs
from pad_fast.engines.triton.operations import Operations

from ...support.comparison import relative_error
from ...support.triton import (
    ALL,
    BATCHES,
    CPU,
    STEP,
    WEIGHT,
    Emulated,
    assert_same,
    gradients,
    problem_of,
    register,
)

pytest.importorskip("triton", reason="the kernels' modules import Triton")


def test_recorded_passes_follow_their_inputs(recording):
    for round_, hard in enumerate([False] * 5 + [True] * 3):
        problem = problem_of(seed=round_, hard=hard)
        wanted = tuple(name for name in ALL if not (hard and name == "labels"))
        ours = gradients(problem, wanted, backend="triton", cache=1 << 20)
        assert_same(ours, gradients(problem, wanted, gradient="unroll"))
    assert recording.graphs.recorded == 4, "one recording of each pass for soft and for hard labels"


def test_runs_are_identical_with_and_without_recording(recording):
    first, again = (gradients(problem_of(seed=3), backend="triton") for _ in range(2))
    third = gradients(problem_of(seed=3), backend="triton")
    assert recording.graphs.recorded == 2
    for a, b, c in zip(first, again, third, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_other_shapes_are_recorded_anew(recording):
    problem = problem_of()
    short = [*BATCHES[:-1], torch.tensor([3])]
    for batches in (BATCHES, short, BATCHES, short):
        ours = gradients(problem, backend="triton", batches=batches)
        assert_same(ours, gradients(problem, gradient="unroll", batches=batches))
    assert recording.graphs.recorded == 4
    for name, change in (("mask", ParameterMask.depth(0.2)), ("cache", 1 << 20), ("gradient", "tesla")):
        before = recording.graphs.recorded
        for _ in range(2):
            gradients(problem, backend="triton", **{name: change})
        assert recording.graphs.recorded == before + 2, name


def test_several_runs_at_once_do_not_share_a_recording(recording):
    """Losses of several trajectories are summed up before anything is pulled back."""
    gradients(problem_of(), backend="triton")
    problems = [problem_of(seed=seed) for seed in range(3)]
    for _ in range(2):
        total, leaves = torch.zeros((), dtype=torch.float64), []
        for problem in problems:
            problem = {**problem, "images": problem["images"].clone().requires_grad_()}
            leaves.append(problem["images"])
            total = total + (trajectory_matching_loss(problem.pop("model"), backend="triton", **problem) * WEIGHT).sum()
        for problem, grad in zip(problems, torch.autograd.grad(total, leaves), strict=True):
            assert relative_error(grad, gradients(problem, ("images",), gradient="unroll")[1]) < STEP
        del total, leaves
        gc.collect()
    assert recording.graphs.recorded == 6


def test_losses_without_a_gradient_and_gradients_twice(recording):
    problem = problem_of()
    truth = gradients(problem, ("images",), gradient="unroll")
    net = problem["model"]
    rest = {name: value for name, value in problem.items() if name not in ("model", "images")}
    for _ in range(4):  # an iteration above the threshold ends here
        leaf = problem["images"].clone().requires_grad_()
        loss = trajectory_matching_loss(net, images=leaf, backend="triton", **rest)
        assert relative_error(loss, truth[0]) < STEP
        del loss
    assert recording.graphs.recorded == 1
    for _ in range(3):
        leaf = problem["images"].clone().requires_grad_()
        loss = trajectory_matching_loss(net, images=leaf, backend="triton", **rest)
        (first,) = torch.autograd.grad(loss, leaf, WEIGHT, retain_graph=True)
        (second,) = torch.autograd.grad(loss, leaf, WEIGHT)
        assert relative_error(first, truth[1]) < STEP and torch.equal(first, second)
    assert recording.graphs.recorded == 2
    assert not trajectory_matching_loss(net, images=problem["images"], backend="triton", **rest).requires_grad


def test_pulled_back_again_after_the_recording_served_another_run(recording):
    problem = problem_of()
    truth = gradients(problem, ("images",), gradient="unroll")
    net, rest = problem.pop("model"), {name: value for name, value in problem.items() if name != "images"}
    for _ in range(2):
        leaf = problem["images"].clone().requires_grad_()
        loss = trajectory_matching_loss(net, images=leaf, backend="triton", **rest)
        (first,) = torch.autograd.grad(loss, leaf, WEIGHT, retain_graph=True)
        gradients(problem_of(seed=3), ("images",), backend="triton")
        (second,) = torch.autograd.grad(loss, leaf, WEIGHT)
        assert relative_error(first, truth[1]) < STEP and relative_error(second, truth[1]) < STEP
        del loss
    assert recording.graphs.recorded == 2, "a run that was pulled back does not hold its recording"


def test_results_outlive_the_next_run(recording):
    results = [gradients(problem_of(seed=seed), backend="triton") for seed in range(5)]
    for seed, ours in enumerate(results):
        assert_same(ours, gradients(problem_of(seed=seed), gradient="unroll"))


def test_other_callables_are_not_recorded(recording):
    problem = problem_of()
    for _ in range(3):
        gradients(problem, backend="triton", augment=lambda images, step: images * (step + 1))
    assert recording.graphs.recorded == 0


def test_recordings_can_be_switched_off(recording, monkeypatch):
    monkeypatch.setenv("PAD_FAST_GRAPHS", "0")
    for _ in range(3):
        gradients(problem_of(), backend="triton")
    assert recording.graphs.recorded == 0


class Broken(Emulated):
    """Cannot record; `error` says how."""

    error: RuntimeError = RuntimeError("operation not permitted when stream is capturing")
    asked = 0

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        type(self).asked += 1
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("stream is capturing"), torch.OutOfMemoryError("no room")], ids=repr)
def test_what_cannot_be_recorded_runs_plainly(monkeypatch, caplog, error):
    monkeypatch.setattr(Broken, "error", error)
    monkeypatch.setattr(Broken, "asked", 0)
    engine = register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Broken))
    problem = problem_of()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        for _ in range(4):
            assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"))
    assert Broken.asked == 1 and len(caplog.records) == 1 and str(error) in caplog.text
    task, theta = Task(problem["model"], CPU, torch.float64), problem["theta_start"][0]
    for _ in range(6):
        engine.loss_and_grad(task, theta, problem["images"], problem["labels"])
    assert Broken.asked == 2


def test_a_reverse_pass_that_cannot_be_recorded(monkeypatch, caplog):
    class Half(Emulated):
        calls = 0

        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            Half.calls += 1
            if Half.calls == 2:
                raise RuntimeError("not this one")
            return super().record(work)

    register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Half))
    for seed in range(4):
        problem = problem_of(seed=seed)
        assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"))
    assert Half.calls == 2 and "not this one" in caplog.text


class Counting(Passes):
    def __init__(self) -> None:
        self.runs = 0

    def forward(self, inputs: Inputs) -> Tensor:
        return inputs.theta_start.sum(-1)

    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return (grad_loss[:, None].expand_as(inputs.theta_start).clone(), None)


def inputs_of(value: float) -> Inputs:
    return Inputs(*(torch.full((1, 2), value, dtype=torch.float64) for _ in range(6)), None)


def test_recordings_not_used_for_longest_are_dropped():
    graphs = Graphs(Emulated, kept=2)
    for key in ("a", "b", "c"):
        for _ in range(2):
            assert float(graphs.passes(key, Counting, CPU).forward(inputs_of(3.0))) == 6
    assert graphs.recorded == 3
    assert float(graphs.passes("c", Counting, CPU).forward(inputs_of(4.0))) == 8
    assert float(graphs.passes("b", Counting, CPU).forward(inputs_of(4.0))) == 8
    assert graphs.recorded == 3, "both were kept"
    assert float(graphs.passes("a", Counting, CPU).forward(inputs_of(4.0))) == 8
    assert graphs.recorded == 4, "this one was dropped"
    held = [graphs.passes(key, Counting, CPU) for key in ("a", "b")]
    assert [float(passes.forward(inputs_of(1.0))) for passes in held] == [2, 2]
    extra = graphs.passes("a", Counting, CPU)
    assert float(extra.forward(inputs_of(5.0))) == 10, "no room: it runs plainly"
    assert isinstance(extra, Counting)
    del held
    gc.collect()
    assert not isinstance(graphs.passes("a", Counting, CPU), Counting)
    assert graphs.clear()
    assert not graphs.clear()


def test_functions_are_recorded_by_shape():
    graphs, calls = Graphs(Emulated), []

    def work(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return a * b, a.sum()

    for value in range(1, 9):
        for size in (2, 3):
            a = torch.full((size,), float(value))
            product, total = graphs.call("work", work, (a, a), CPU)
            assert product.tolist() == [value**2] * size and float(total) == value * size
    assert len(calls) == 10 and graphs.recorded == 2, "four plain calls of each, and one that is recorded"


def places(tensors: Any) -> list[Any]:
    """What Triton compiles a kernel for: dtypes, strides and alignments of tensors."""
    return [
        None if tensor is None else (tensor.dtype, tensor.stride(), tensor.data_ptr() % 16 == 0) for tensor in tensors
    ]


class Noting(Passes):
    """Notes what both passes are given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def forward(self, inputs: Inputs) -> Tensor:
        self.given.append(places(inputs))
        return inputs.theta_start.sum(-1)

    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        self.given.append(places([*inputs, grad_loss]))
        return (grad_loss.clone(),)


def test_the_plain_run_and_the_recorded_one_are_compiled_for_the_same():
    """Inputs as callers have them: expanded over trajectories, rows of a table, at odd places."""
    graphs = Graphs(Emulated)
    table = torch.randn(5, 7, dtype=torch.float32)
    expanded, row, shifted = table[:1].expand(2, 7), table[1:3], torch.randn(15)[1:].view(2, 7)
    runs = []
    for given in (expanded, row, shifted):
        key = len(runs)
        for _ in range(2):
            passes = Noting()
            lease = graphs.passes(key, lambda passes=passes: passes, CPU)
            inputs = Inputs(given, given, *(torch.ones(1) for _ in range(4)), None)
            lease.forward(inputs)
            lease.reverse(inputs, torch.ones(()).expand(2))
            runs.append(passes.given)
        assert runs[-2] == runs[-1]
    noted: list[Any] = []

    def work(*tensors: Tensor) -> tuple[Tensor, ...]:
        noted.append(places(tensors))
        return (tensors[0].sum(),)

    for _ in range(8):
        graphs.call("step", work, [expanded, shifted], CPU)
    assert noted[0] == noted[-1] != noted[1]


def test_only_what_recurs_is_recorded():
    """Two calls in a step of GSAM, with a last batch of another size in every epoch of a growing curriculum."""
    graphs = Graphs(Emulated)

    def step(size: int) -> None:
        for _ in range(2):
            (total,) = graphs.call("step", lambda x: (x.sum(),), [torch.ones(size)], CPU)
            assert total == size

    for epoch in range(21):
        for _ in range(3):
            step(256)
        step(epoch + 1)
    assert graphs.recorded == 1


class Streams:
    """The parts of torch.cuda that a recording touches, as they are while a capture fails."""

    def __init__(self, *, fails_at_end: bool) -> None:
        self.fails_at_end, self.current, self.given = fails_at_end, "the caller's", []
        self.device_now = None

    def graph(self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        self.given.append(stream)
        return self

    def __enter__(self) -> None:
        self.current = self.given[-1]

    def __exit__(self, *error: Any) -> None:
        if self.fails_at_end:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current = "the caller's"


@pytest.mark.parametrize("fails_at_end", [False, True])
def test_a_capture_uses_a_stream_of_its_device_and_gives_the_callers_back(monkeypatch, fails_at_end):
    streams = Streams(fails_at_end=fails_at_end)

    @contextmanager
    def device(which: torch.device) -> Iterator[None]:
        streams.device_now = which
        yield
        streams.device_now = None

    for name, value in {
        "graph": streams.graph,
        "device": device,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "Stream": lambda: f"a stream of {streams.device_now}",
        "current_stream": lambda: streams.current,
        "set_stream": lambda stream: setattr(streams, "current", stream),
        "graph_pool_handle": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recorder = CudaRecorder(torch.device("cuda:1"))
    if fails_at_end:
        with pytest.raises(RuntimeError, match="previous error"):
            recorder.record(lambda: 1)
    else:
        assert recorder.record(lambda: 1)[1] == 1
    assert streams.given == ["a stream of cuda:1"] and streams.current == "the caller's"
