"""Host code of the engine with its real launches: what is recorded into a graph was run plainly before, and no more.

Kernels are written down instead of run, bound by Triton's own specialisation, and captures of graphs are held to what
CUDA allows while a stream is captured (tests/support/launches.py, tests/support/capture.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="launches are bound by Triton")

from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task
from pad_fast.engines.triton import engine as engine_module
from pad_fast.engines.triton import graphs
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.kernels import augment as augment_kernels
from pad_fast.models import FlatNetwork

from ...support.capture import capturing
from ...support.launches import Forbidden, Launch
from ...support.small import NETS
from ...support.triton import CPU

BATCHES = [torch.tensor([0, 1, 4]), torch.tensor([8]), torch.arange(9), torch.tensor([3, 3])]
SHORT = BATCHES[1:3]

ODD = "gray28"
"""17 channels, so that no layer's parameters begin at a multiple of 16 bytes."""


def total(losses: Tensor) -> Tensor:
    return losses.sum()


def pulled_back(
    net: str,
    *,
    stacked: int = 1,
    hard: bool = False,
    ends: bool = False,
    form: Callable[[Tensor], Tensor] = torch.clone,
    pull: Callable[[Tensor], Tensor] = total,
    **options: Any,
) -> None:
    """One run of four steps on batches of several sizes, and its gradients; their values say nothing here.

    Args:
        ends: whether the trajectories' ends want gradients too.
        form: lays the tensors out otherwise.
        pull: what is differentiated.
    """
    sizes = NETS[net]
    network = FlatNetwork(ConvNet(**sizes))
    theta = network.initial().repeat(stacked, 1)
    start, target = (form(vectors).requires_grad_(ends) for vectors in (theta, theta + 0.01))
    images = form(torch.zeros(9, sizes["channels"], sizes["resolution"], sizes["resolution"])).requires_grad_()
    soft = form(torch.zeros(9, sizes["classes"])).requires_grad_()
    labels = torch.zeros(9, dtype=torch.int64) if hard else soft
    rate = torch.tensor(0.01, requires_grad=True)
    losses = trajectory_matching_loss(
        network, start, target, images, labels, rate, **{"batches": BATCHES, "backend": "triton", **options}
    )
    pull(losses).backward()


# -- unrolled runs --------------------------------------------------------------------------------------------------

DEPTH, LOSS = ParameterMask.depth(0.5), ParameterMask.loss(0.5)

RUNS: dict[str, dict[str, Any]] = {
    "plain": {"net": "digits"},
    "DSA, depth mask": {"net": "digits", "augment": DSA().seeded(0), "mask": DEPTH},
    "three trajectories, DSA": {"net": "digits", "stacked": 3, "augment": DSA().seeded(0), "ends": True},
    "loss mask": {"net": "digits", "mask": LOSS, "ends": True},
    "three trajectories, loss mask": {"net": "digits", "stacked": 3, "mask": LOSS},
    "kept activations": {"net": "channels17", "stacked": 2, "cache": 1 << 30},
    "some are kept": {"net": "channels17", "cache": 40_000},
    "TESLA": {"net": "digits", "gradient": "tesla"},
    "classes": {"net": "digits", "hard": True, "stacked": 2},
    "odd rows": {"net": ODD, "stacked": 3, "ends": True, "mask": DEPTH},
    "odd rows, loss mask": {"net": ODD, "stacked": 3, "ends": True, "mask": LOSS},
    "odd images": {"net": "odd33", "augment": DSA().seeded(0)},
    "odd images, classes": {"net": "wide", "stacked": 2, "hard": True, "cache": 1 << 30},
    "one block": {"net": "depth1", "stacked": 2},
    "one pixel": {"net": "one_pixel"},
    "many classes": {"net": "classes200", "mask": LOSS},
    "bf16": {"net": "digits", "precision": "bf16", "cache": 1 << 30},
    "ieee": {"net": "digits", "precision": "ieee", "stacked": 2},
}


@pytest.mark.parametrize("case", RUNS)
def test_a_recorded_run_launches_what_the_plain_one_did(captures, launches, case):
    with launches.since() as plain:
        pulled_back(**RUNS[case])
    pulled_back(**RUNS[case])
    assert [launch for capture in captures.made for launch in capture] == plain
    assert len(captures.made) == 2 and len(plain) > 50
    with launches.since() as replayed:
        pulled_back(**RUNS[case])
    assert not replayed and captures.replays == 4


@pytest.mark.parametrize("net", ["digits", "odd33"])
@pytest.mark.parametrize("part", [1, 2, 5])
def test_so_it_does_in_parts_of_a_batch(captures, launches, monkeypatch, net, part):
    """Nine images in parts of one, two and one, and five and four, which begin at odd places."""
    images: set[int] = set()
    launches.before = lambda launch, args: images.add(images_of(launch, args))
    task = Task(FlatNetwork(ConvNet(**NETS[net])), CPU, torch.float32)
    one = TritonEngine(Operations())._steps(task).working_bytes(1, 1, 4)
    monkeypatch.setattr(engine_module, "_WORKING_BYTES", part * one)
    for _ in range(2):
        pulled_back(net, cache=1 << 30, batches=SHORT)
    assert len(captures.made) == 2 and not captures.unrehearsed()
    assert max(images) == part


def images_of(launch: Launch, args: tuple[Any, ...]) -> int:
    """Images of the maps that a block's launch has, 0 for any other launch."""
    if not launch.program.kernel.startswith("block.") or launch.program.kernel.endswith("sum_images_kernel"):
        return 0
    return max(arg.shape[1] for arg in args if isinstance(arg, Tensor) and arg.dim() == 5)


def column_major(x: Tensor) -> Tensor:
    return x.t().contiguous().t() if x.dim() == 2 else x.contiguous(memory_format=torch.channels_last)


def expanded(x: Tensor) -> Tensor:
    """All rows are one, as for trajectories that begin at one snapshot."""
    return x[:1].expand(x.shape)


def shifted(x: Tensor) -> Tensor:
    """Rows of a table that begins one entry late."""
    memory = x.new_zeros(len(x) + 1, x[0].numel() + 3)
    return memory.view(-1)[1 : 1 + x.numel()].view(x.shape)


FORMS = {form.__name__: form for form in (torch.clone, column_major, expanded, shifted)}


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("stacked", [1, 3])
def test_how_the_callers_tensors_lie_makes_no_difference(captures, first, stacked):
    """A run is recorded for others that lie elsewhere, after a plain one of any kind."""
    for form in (first, *FORMS):
        pulled_back(ODD, stacked=stacked, form=FORMS[form], mask=LOSS, batches=SHORT)
    assert len(captures.made) == 2 and not captures.unrehearsed()


def weighted(losses: Tensor) -> Tensor:
    return (losses * torch.ones(len(losses))).sum()


@pytest.mark.parametrize("stacked", [1, 2])
@pytest.mark.parametrize("first", [total, weighted])
def test_how_a_loss_is_differentiated_makes_no_difference(captures, first, stacked):
    """The gradient of a sum has a stride of 0; a number's strides survived its copy, and compiled a kernel anew."""
    for pull in (first, weighted, total):
        pulled_back("digits", stacked=stacked, pull=pull, batches=SHORT)
    assert len(captures.made) == 2 and not captures.unrehearsed()


@pytest.mark.parametrize("bytes_", [(1000, 1 << 30), (1 << 30, 1000), (40_000, 1 << 30)])
def test_a_recording_keeps_what_the_plain_run_kept(captures, bytes_):
    """With `cache="auto"` every call may keep another amount."""
    for cache in bytes_:
        pulled_back("channels17", cache=cache)
    assert len(captures.made) == 2 and not captures.unrehearsed()


# -- memory runs out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["block.kernels.forward_kernel", "block.kernels.adjoint_kernel"])
@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_halved_batches_run_plainly_before_they_are_recorded(captures, launches, caplog, kernel, cache):
    """Even where it was the way back that did not fit: the way there comes in halves from then on, too."""

    def runs_out(launch: Launch, args: tuple[Any, ...]) -> None:
        if launch.program.kernel == kernel and images_of(launch, args) > 4:
            raise torch.OutOfMemoryError("there is no more")

    launches.before = runs_out
    with caplog.at_level(logging.WARNING, "pad_fast"):
        for _ in range(4):
            pulled_back("digits", cache=cache)
    assert "parts of at most 4 images" in caplog.text and len(caplog.records) == (2 if cache else 1)
    assert len(captures.made) == 2 and not captures.unrehearsed() and captures.replays == 4


def test_graphs_that_nobody_uses_are_given_up_first(captures, launches, caplog):
    """The other run goes on, is not taken in parts, and both are recorded again."""
    for _ in range(2):
        pulled_back("digits")
    full = [True]

    def runs_out(launch: Launch, args: tuple[Any, ...]) -> None:
        if full and images_of(launch, args) == 9:
            full.pop()
            raise torch.OutOfMemoryError("there is no more")

    launches.before = runs_out
    with caplog.at_level(logging.WARNING, "pad_fast"):
        for net in ("wide", "wide", "digits", "wide"):
            pulled_back(net)
    assert [record.getMessage() for record in caplog.records] == [
        "GPU memory ran out: recorded CUDA graphs are given up"
    ]
    assert len(captures.made) == 6 and captures.replays == 8


def test_what_does_not_fit_while_it_is_captured_runs_plainly(captures, launches, caplog):
    def runs_out(launch: Launch, args: tuple[Any, ...]) -> None:
        if launches.capturing and launch.program.kernel == "block.kernels.adjoint_kernel":
            raise torch.OutOfMemoryError("there is no more")

    launches.before = runs_out
    with caplog.at_level(logging.WARNING, "pad_fast"):
        for _ in range(3):
            with launches.since() as found:
                pulled_back("digits")
    assert len(captures.made) == 1 and "could not record" in caplog.text and len(caplog.records) == 1
    assert found == launches.plain[: len(found)], "whole, without a recording"


# -- planted faults: each of these is seen ----------------------------------------------------------------------------


def test_a_plain_run_on_the_callers_tensors_is_seen(captures, monkeypatch):
    """As it was: a row stride of 0 for trajectories with one target, compiled for P when it is captured."""

    def forward(self: Any, inputs: Any) -> Tensor:
        self.inputs = inputs
        return self.passes.forward(inputs)

    monkeypatch.setattr(graphs._Warming, "forward", forward)
    pulled_back(ODD, stacked=3, form=expanded)
    with pytest.raises(Forbidden, match=r"compiled while a graph is captured: matching\._sums_kernel"):
        pulled_back(ODD, stacked=3, form=torch.clone)


def test_rows_at_odd_places_are_seen(captures, monkeypatch):
    monkeypatch.setattr(graphs, "_own", lambda tensor: tensor.detach())
    pulled_back(ODD, stacked=2)
    with pytest.raises(Forbidden, match="compiled while a graph is captured"):
        pulled_back(ODD, stacked=2, form=shifted)


def test_a_launch_more_is_seen(captures, launches, monkeypatch):
    """Nothing new is compiled, but a capture begins with a launch that no plain run had there."""
    record = captures.record

    def more(work: Callable[[], Any]) -> Any:
        return record(lambda: (augment_kernels.draw(seed, steps=1, batch=4, shape=(8, 8)), work())[1])

    seed = torch.zeros((), dtype=torch.int64)
    pulled_back("digits")
    augment_kernels.draw(seed, steps=1, batch=4, shape=(8, 8))
    monkeypatch.setattr(captures, "record", more)
    pulled_back("digits")
    assert len(captures.unrehearsed()) == 2


SOME, CODES, MASK = torch.arange(6.0).view(2, 3), torch.tensor([1, 0]), torch.tensor([True, False])

NOT_IN_A_CAPTURE: dict[str, Callable[[], Any]] = {
    "item": lambda: SOME.sum().item(),
    "float": lambda: float(SOME.sum()),
    "bool": lambda: bool((SOME > 0).all()),
    "tolist": lambda: SOME.tolist(),
    "numpy": lambda: SOME.numpy(),
    "cpu": lambda: SOME.cpu(),
    "to the CPU": lambda: SOME.to("cpu"),
    "equal": lambda: torch.equal(SOME, SOME),
    "allclose": lambda: torch.allclose(SOME, SOME),
    "nonzero": lambda: SOME.nonzero(),
    "where": lambda: torch.where(SOME > 1),
    "mask": lambda: SOME[MASK],
    "masked_select": lambda: SOME.masked_select(SOME > 1),
    "assigned by a mask": lambda: SOME.clone().__setitem__(MASK, 1),
    "unique": lambda: CODES.unique(),
    "repeats": lambda: SOME.repeat_interleave(CODES, 0),
    "number of an index": lambda: SOME[CODES[0]],
    "a list": lambda: SOME[[0, 1]],
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "tensor on the device": lambda: torch.tensor(1.0, device=SOME.device),
    "new_tensor": lambda: SOME.new_tensor([1.0]),
    "on the host": lambda: torch.zeros(3),
    "range": lambda: torch.arange(3),
    "pinned": lambda: SOME.pin_memory(),
    "synchronize": lambda: torch.cuda.synchronize(),
    "empty_cache": lambda: torch.cuda.empty_cache(),
}


@pytest.mark.parametrize("what", NOT_IN_A_CAPTURE)
def test_what_must_not_be_captured_is_seen(launches, what):
    with pytest.raises(Forbidden), capturing(launches):
        NOT_IN_A_CAPTURE[what]()


def test_what_may_be_captured_is_let_through(launches):
    with capturing(launches):
        rows = SOME.index_select(0, CODES) + SOME[CODES] + SOME[:, None, 1:].sum() + SOME.new_full((), 2.0)
        made = torch.zeros_like(rows).copy_(rows).to(torch.float64).view(-1).contiguous()
        made += torch.empty(6, device=SOME.device).fill_(1) + torch.stack([made, made]).sum(0)
    assert made.shape == (6,)


@pytest.mark.parametrize("fault", ["item", "tensor on the device"])
def test_it_is_seen_in_the_middle_of_a_step(captures, monkeypatch, fault):
    steps = engine_module.Steps.plain

    def reading(self: Any, *args: Any, **options: Any) -> Any:
        NOT_IN_A_CAPTURE[fault]()
        return steps(self, *args, **options)

    monkeypatch.setattr(engine_module.Steps, "plain", reading)
    pulled_back("digits")
    with pytest.raises(Forbidden):
        pulled_back("digits")
