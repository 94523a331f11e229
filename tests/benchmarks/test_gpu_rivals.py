"""The plain side's stronger forms compute what the plain loop does, and CUDA graphs of it are driven by a stand-in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from benchmarks import gpu, gpu_epochs, gpu_rivals, gpu_unroll, rivals
from benchmarks.gpu_cases import COMPILED, EPOCHS, LOOP, RIVALS, UNROLLS, EpochCase, Plain
from benchmarks.gpu_timing import NeedsCudaError
from pad_fast import ConvNet
from pad_fast.models import FlatNetwork

from ..support.comparison import relative_error
from ..support.paths import ROOT
from ..support.triton import _Tape

CPU = gpu.Device("cpu")
CASE = gpu.UnrollCase(4, 3, width=4, depth=2)
GRAPH = "plain loop, CUDA graph"
EXACT = 1e-9


def problem_of(depth: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    torch.manual_seed(0)
    module = ConvNet(width=4, depth=depth).to(dtype)
    theta = FlatNetwork(module).initial()
    target = theta + 0.01 * torch.randn_like(theta)
    images, labels = torch.randn(4, 3, 32, 32, dtype=dtype), torch.randn(4, 10, dtype=dtype)
    return module, theta, target, images, labels, torch.tensor(0.3, dtype=dtype), [torch.tensor([0, 2, 1, 0])] * 3


COMPILES = """
import sys
from torch._dynamo.utils import counters
from benchmarks import gpu_rivals, gpu_unroll, rivals
from benchmarks.gpu_cases import Plain
from tests.benchmarks.test_gpu_rivals import problem_of

problem = problem_of(depth=1)
how = Plain(compiled=True, options=(("backend", sys.argv[1]), ("fullgraph", True)))
step = gpu_rivals.student_step(problem[0], how, bf16=False)
found = rivals.plain_unroll(*problem, step=step, select=rivals.rows)[1]
print(gpu_unroll.worst(found, rivals.plain_unroll(*problem)[1]), counters["stats"]["unique_graphs"])
"""


def worst(found: Any, truth: Any) -> float:
    assert all(float(expected.norm()) > 0 for expected in truth)
    return gpu_unroll.worst(found, truth)


@pytest.mark.parametrize("how", [Plain(channels_last=True), Plain(graph=True)], ids=["channels_last", "select"])
def test_forms_of_the_loop_give_the_same_gradients(how):
    problem = problem_of()
    truth = rivals.plain_unroll(*problem)[1]
    step = gpu_rivals.student_step(problem[0], how, bf16=False)
    layouts: list[bool] = []
    seen = (
        problem[0]
        .features[0]
        .register_forward_pre_hook(
            lambda _, given: layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))
        )
    )
    found = rivals.plain_unroll(*problem, step=step, select=rivals.rows)[1]
    seen.remove()
    assert 0 < worst(found, truth) < EXACT or torch.equal(found[0], truth[0])
    assert layouts == [how.channels_last] * 3


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_steps_give_the_same_gradients(backend):
    # In a process of its own: what checks shapes in these tests cannot be compiled in one piece.
    done = subprocess.run([sys.executable, "-c", COMPILES, backend], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    error, graphs = done.stdout.split()
    assert float(error) < EXACT and graphs == "1", "forward and gradient of a step are one piece of code for all steps"


def test_graphs_of_compiled_steps_have_the_whole_step_compiled():
    forms = [how for how in RIVALS.values() if how.compiled and how.graph]
    assert len(forms) == 2 and all(dict(how.options)["fullgraph"] is True for how in forms)
    assert [dict(how.options).get("mode") for how in forms] == [None, "max-autotune-no-cudagraphs"]


def test_the_bf16_loop_multiplies_in_bf16():
    problem = problem_of(dtype=torch.float32)
    truth = rivals.plain_unroll(*problem)[1]
    found = rivals.plain_unroll(*problem, step=rivals.autograd_step(problem[0], bf16=True))[1]
    assert found[0].dtype == torch.float32 and 1e-3 < relative_error(found[0], truth[0]) < 0.3


def test_training_in_channels_last_ends_alike():
    for expert in (True, False):
        problem = gpu.Epochs(EpochCase(9, expert=expert, networks=2, epochs=2, width=4), CPU, "autograd")
        problem.batch = 5
        truth = problem.plain()()
        assert worst([problem.plain(Plain(channels_last=True))()], [truth]) < 1e-3
        assert not torch.equal(truth[0], truth[1])


def test_without_cuda_graphs_are_skipped_by_name():
    (plain, rival) = gpu.run_unroll(CASE, CPU, "autograd", rounds=1, seconds=20, variant=GRAPH)
    assert plain.row()["status"] == "ok" and rival.row()["status"] == "skipped: needs CUDA"
    epochs = EpochCase(9, expert=False, width=4)
    (plain, rival) = gpu.run_epochs(epochs, CPU, "autograd", rounds=1, variant="plain torch, CUDA graph")
    assert plain.row()["status"] == "ok" and rival.row()["status"] == "skipped: needs CUDA"
    assert "ms" not in rival.row() and "skipped: needs CUDA" in gpu.table([{"case": "x", **rival.row()}])
    with pytest.raises(NeedsCudaError, match="needs CUDA"):
        gpu_rivals.Captured(lambda: None, torch.device("cpu"))


class StrictTape(_Tape):
    """What is captured; like a capture it allows no look at a value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero"):
            raise RuntimeError("operation not permitted when stream is capturing")
        given = _aliases((args, kwargs or {}))
        result = super().__torch_dispatch__(function, types, args, kwargs)
        made = self.calls.pop()[3]
        if torch.Tag.inplace_view not in function.tags:
            self.calls.append((function, *given, _aliases(made)))
        return result


def _aliases(tree: Any) -> Any:
    """The same memory with the shapes of now: autograd changes shapes in place (`unsqueeze_`)."""
    return tree_map_only(torch.Tensor, torch.ops.aten.alias, tree)


class StandIn:
    """CUDA graphs on the CPU: `torch.cuda`'s names, with every operator written down and done again.

    `said` lists what happens: warm-ups on a stream of their own, captures, replays.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.replays = True
        self.error_at_the_end: Exception | None = None
        stand_in = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.name = "own"

            def wait_stream(self, other: Any) -> None:
                stand_in.said.append("wait")

        class Graph:
            tape: StrictTape

            def replay(self) -> None:
                stand_in.said.append("replay")
                if stand_in.replays:
                    with torch.no_grad():
                        self.tape.replay()

        @contextmanager
        def graph(graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            stand_in.said.append("capture")
            graph.tape = StrictTape()
            try:
                with graph.tape:
                    yield
            finally:
                if stand_in.error_at_the_end is not None:
                    raise stand_in.error_at_the_end
            for _, _, _, made in graph.tape.calls:  # a capture computes nothing
                for tensor in made:
                    if tensor.is_floating_point():
                        tensor.detach().fill_(float("nan"))

        @contextmanager
        def stream(given: Stream) -> Iterator[None]:
            stand_in.said.append("side stream")
            yield

        names = {"Stream": Stream, "CUDAGraph": Graph, "graph": graph, "stream": stream}
        names |= {"current_stream": lambda device=None: Stream(), "set_stream": lambda stream: None}
        names |= {"graph_pool_handle": lambda: None, "device": lambda device: nullcontext()}
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for module in (gpu_rivals, gpu_unroll, gpu_epochs):
            monkeypatch.setattr(module, "need_cuda", lambda device: None)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


@pytest.mark.parametrize("name", [GRAPH, "plain loop, channels_last, CUDA graph"])
def test_a_captured_loop_replays_what_it_is_given(cuda, name):
    problem = gpu.Unroll(CASE, CPU, "autograd")
    captured = problem.captured(3, how=RIVALS[name])
    assert not cuda.said, "nothing is captured before memory is watched"
    draws = problem.drawn(3)
    assert len({draw.operation for draw in draws}) > 1
    assert worst(captured(), problem.plain(3, draws=draws)) < 1e-5
    assert cuda.said == ["wait", "side stream", "wait", "capture", "replay"]
    problem.images.mul_(0.5)
    problem.lr.mul_(2)
    assert worst(captured(), problem.plain(3, draws=draws)) < 1e-5
    assert cuda.said[-2:] == ["replay", "replay"]


def test_what_cannot_be_captured_is_no_row(cuda):
    captured = gpu_rivals.Captured(lambda: torch.ones(1).sum().item(), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not permitted"):
        captured()


def test_memory_that_runs_out_in_a_capture_is_seen(cuda):
    def work() -> None:
        if "capture" in cuda.said:
            raise torch.OutOfMemoryError("injected")

    cuda.error_at_the_end = RuntimeError("capture was invalidated")
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        gpu_rivals.Captured(work, torch.device("cpu"))()


def test_a_captured_loop_is_checked_and_timed(cuda):
    plain, rival = gpu.run_unroll(CASE, CPU, "autograd", rounds=2, seconds=60, variant=GRAPH)
    assert rival.row()["status"] == "ok" and rival.check < 1e-5 and rival.timed.error < 1e-5
    # In full float32; whether it fits; warmed up for memory. Then replays: twice timed, once compared.
    assert cuda.said.count("capture") == 3 and cuda.said[-3:] == ["replay"] * 3
    assert plain.timed.tolerance is None and rival.timed.tolerance == 0.1


def test_a_graph_that_does_nothing_is_refused(cuda):
    cuda.replays = False
    with pytest.raises(SystemExit, match="CUDA graph is off by nan; no speed"):
        gpu.run_unroll(CASE, CPU, "autograd", rounds=1, seconds=60, variant=GRAPH)


def test_a_loop_that_does_not_fit_is_captured_with_fewer_steps(cuda, monkeypatch):
    captured = gpu_rivals.Captured.__call__

    def cramped(self: gpu_rivals.Captured) -> Any:
        if len(captured(self)) and cuda.steps > 2:
            raise torch.OutOfMemoryError("injected")
        return self.results

    make = gpu.Unroll.captured

    def noted(self: gpu.Unroll, steps: int, **options: Any) -> Any:
        cuda.steps = steps
        return make(self, steps, **options)

    monkeypatch.setattr(gpu_rivals.Captured, "__call__", cramped)
    monkeypatch.setattr(gpu.Unroll, "captured", noted)
    case = gpu.UnrollCase(4, 8, width=4, depth=1)
    entered = gpu.run_unroll(case, CPU, "autograd", rounds=1, seconds=60, variant=GRAPH)
    assert [(rival.row()["rival"], rival.row()["status"], rival.steps) for rival in entered] == [
        ("plain loop", "ok", 8),
        (GRAPH, "out of memory", 8),
        (f"{GRAPH}, fewer steps", "ok", 2),
    ]
    assert entered[2].timed.error < 1e-4


@pytest.mark.parametrize("expert", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_captured_epoch_ends_where_the_plain_one_does(cuda, expert, channels_last):
    problem = gpu.Epochs(EpochCase(9, expert=expert, networks=2, epochs=2, width=4), CPU, "autograd")
    problem.batch = 5  # and a last one of 4
    truth = problem.plain()()
    train = problem.plain(Plain(graph=True, channels_last=channels_last))
    for _ in range(2):
        assert worst([train()], [truth]) < 1e-3
    assert cuda.said.count("capture") == 2, "one for each size of a batch, and both networks"


def test_captured_epochs_are_checked_and_timed(cuda):
    case = EpochCase(9, expert=False, epochs=2, width=4)
    plain, rival = gpu.run_epochs(case, CPU, "autograd", rounds=1, variant="plain torch, CUDA graph")
    assert rival.check < 1e-4 and rival.timed.error < 1e-4 and rival.timed.tolerance == 0.2
    cuda.replays = False
    with pytest.raises(SystemExit, match="no speed is reported"):
        gpu.run_epochs(case, CPU, "autograd", rounds=1, variant="plain torch, CUDA graph")


def test_every_rival_has_a_process_of_its_own():
    named = gpu.rival_cases(list(gpu.SUITES), tiny=False)
    assert len(named) == len({*named}) == sum(len(case.against) for case in (*UNROLLS.values(), *EPOCHS.values()))
    forms = {name.partition(" | ")[2] for _, name in named}
    assert forms == {*RIVALS}, "every form is measured somewhere"
    assert all(case.against for name, case in UNROLLS.items() if name in gpu.verdict([]))
    compiled = gpu.to_compile([*named, ("unroll", "tiny"), ("matching", "x")], "autograd")
    assert compiled and all(RIVALS[name.partition(" | ")[2]].compiled for _, name in compiled)
    assert ("unroll", "tiny") in gpu.to_compile([("unroll", "tiny | ours, 8 trajectories")], "triton")
    assert gpu.optional(f"CIFAR-10 IPC 1 | {COMPILED}") and not gpu.optional(f"CIFAR-10 IPC 1 | {GRAPH}")
    assert LOOP not in RIVALS.values()


def test_the_choice_of_cases():
    both = gpu.chosen(["unroll"], "with", tiny=True)
    assert both == (gpu.cases(["unroll"], tiny=True), gpu.rival_cases(["unroll"], tiny=True))
    assert gpu.chosen(["unroll"], "rivals", tiny=True) == ([], both[1])
    assert gpu.chosen(["unroll"], "without", tiny=True) == ([("unroll", "tiny")], [])
    assert gpu.chosen(["unroll"], "alone", tiny=True) == ([("unroll", "tiny | ours, 8 trajectories")], [])
