"""Every launch of the published settings is on the list of what is compiled ahead of time, as it is launched.

Launches are written down instead of run, bound by Triton's own specialisation (tests/support/launches.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="launches are bound by Triton")

from triton import knobs

from benchmarks.gpu_cases import EPOCHS, UNROLLS, VARIANTS
from benchmarks.model import SETTINGS, Setting
from pad_fast import DSA, ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.kernels import aot, head
from pad_fast.kernels.aot import Production
from pad_fast.models import FlatNetwork
from pad_fast.training.optimizers import GSAM, SGD, Optimizer

from ..support.launches import Launches, Program, jitted, launches_written_down
from ..support.triton import CPU, register

POINTERS = {"*fp32": torch.float32, "*fp64": torch.float64, "*bf16": torch.bfloat16}


@pytest.fixture
def launches() -> Iterator[Launches]:
    with launches_written_down() as found:
        yield found


def listed(launches: Launches, patch: pytest.MonkeyPatch) -> dict[Program, Production]:
    """The list for sm_90, as Triton binds what each item was made of."""
    bindings: dict[str, Program] = {}
    made = aot.production_of

    def bound(name: str, kernel: Any, *args: Any, **options: Any) -> Production:
        item = made(name, jitted(kernel), *args, **options)
        launched = {key: value for key, value in options.items() if key not in ("cost", "precision", "hot", "targets")}
        given = [torch.empty(0, dtype=POINTERS[arg], device="meta") if isinstance(arg, str) else arg for arg in args]
        bindings[item.program] = launches.bind(kernel, (1,), *given, **aot.OPTIONS, **launched).program
        return item

    patch.setattr(aot, "_require_compiler", lambda: None)
    patch.setattr(aot, "production_of", bound)
    items = [item for items in aot.productions().values() for item in items]
    return {bindings[item.program]: item for item in items if 90 in item.targets}


def missing(launches: Launches, patch: pytest.MonkeyPatch) -> list[str]:
    """The programs that were launched and are not on the list."""
    launched = launches.programs
    return sorted(map(str, launched - listed(launches, patch).keys()))


@pytest.fixture
def engine(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    return register(monkeypatch, TritonEngine(Operations()))


def unroll(setting: Setting, mask: ParameterMask, *, trajectories: int = 1, **options: Any) -> None:
    """Two steps forward and back, with DSA and what the published settings differentiate by."""
    network = FlatNetwork(setting.network())
    theta = network.initial().repeat(trajectories, 1)
    images = torch.empty(setting.images, 3, setting.resolution, setting.resolution, requires_grad=True)
    labels = torch.zeros(setting.images, setting.classes, requires_grad=True)
    loss = trajectory_matching_loss(
        network,
        theta,
        theta.clone(),
        images,
        labels,
        torch.tensor(0.01, requires_grad=True),
        batches=[torch.arange(setting.batch)] * 2,
        mask=mask,
        augment=DSA().seeded(0),
        backend="triton",
        **options,
    )
    loss.backward(torch.ones_like(loss))


MASKS = {"none": ParameterMask.none(), "a quarter": ParameterMask.depth(0.25), "half": ParameterMask.depth(0.5)}

# What differs between these are the mask and how many images there are to choose from.
DIFFERENT = {(setting.batch, setting.classes): setting for setting in SETTINGS}


def test_unrolled_runs_of_every_published_setting_are_listed(engine, launches, monkeypatch):
    assert len(DIFFERENT) == 8
    for setting in DIFFERENT.values():
        unroll(setting, MASKS["none"])
        unroll(setting, MASKS["half"], cache=1 << 40)
    for setting in (SETTINGS[0], SETTINGS[5], SETTINGS[9]):
        unroll(setting, MASKS["a quarter"])
    assert len(launches.programs) > 120
    assert not missing(launches, monkeypatch)


def test_variants_of_the_benchmark_are_listed(engine, launches, monkeypatch):
    """Every batch of the headline with every variant that is timed there."""
    ran = 0
    for case in UNROLLS.values():
        setting = Setting("", case.batch, case.batch, case.steps)
        for name in case.more:
            ours = VARIANTS[name]
            options = {**ours.options, "cache": 1 << 40} if "cache" in ours.options else ours.options
            unroll(setting, MASKS["half"], trajectories=ours.trajectories, **options)
            ran += 1
    unroll(SETTINGS[0], ParameterMask.loss(0.5))
    assert ran >= 9
    assert not missing(launches, monkeypatch)


def test_training_is_listed(engine, launches, monkeypatch):
    """Experts by GSAM, score networks by SGD, evaluation networks with momentum; alone and together; their tests."""
    network = FlatNetwork(SETTINGS[0].network())
    task = Task(network, CPU, torch.float32)
    momentum = SGD(0.01, momentum=0.9, weight_decay=5e-4)
    together = {case.networks for case in EPOCHS.values()}
    assert together == {1, 8, 20}
    cases: list[tuple[int, int, bool, Optimizer]] = [
        (1, 256, True, GSAM(0.01)),
        (8, 256, True, GSAM(0.01)),
        (1, 256, True, SGD(0.01)),
        (1, 128, False, momentum),
        (20, 10, False, SGD(0.01, momentum=0.9, weight_decay=5e-4)),
    ]
    for count, batch, hard, optimizer in cases:
        theta, images = network.initial().repeat(count, 1), torch.empty(count, batch, 3, 32, 32)
        labels = torch.zeros(count, batch, dtype=torch.int64) if hard else torch.zeros(count, batch, 10)

        def step(theta: Tensor, images: Tensor = images, labels: Tensor = labels) -> tuple[Tensor, Tensor]:
            return engine.stacked_loss_grad_logits(task, theta, images, labels)[:2]

        optimizer.step(theta, step, engine.updates)
        engine.stacked_forward(task, theta, torch.empty(1, 512, 3, 32, 32).expand(count, -1, -1, -1, -1))
        if count > 1:
            engine.augment_each(images, [DSA().draw(batch, (32, 32))] * count)
    assert not missing(launches, monkeypatch)


def test_a_launch_that_is_not_listed_is_named(engine, launches, monkeypatch):
    """Without one of its sizes, everything else is found."""
    made = head.production

    def incomplete() -> list[Production]:
        return [item for item in made() if (aot._title(item), item.constexprs.get("ROWS")) != ("loss", 64)]

    monkeypatch.setattr(head, "production", incomplete)
    unroll(Setting("", 500, 500, 2), MASKS["none"])
    (only,) = missing(launches, monkeypatch)
    assert only.startswith("head._loss_kernel(") and "ROWS=64" in only


def arguments_of(item: Production, names: Iterable[str]) -> dict[str, str]:
    return {name: item.signature.get(name, "constexpr") for name in names}


def test_the_list_says_of_every_argument_what_triton_does(launches, monkeypatch):
    """Types, constants, alignments and options of what is compiled ahead of time are those of a launch."""
    items = listed(launches, monkeypatch)
    assert len(items) > 250
    for program, item in items.items():
        asked = launches.asked[program]
        names = list(asked["signature"])
        (attributes,) = asked["configs"]
        aligned = {names[place] for (place,), value in attributes.items() if value}
        pointers = {name for name, kind in item.signature.items() if kind.startswith("*")}
        assert asked["signature"] == arguments_of(item, names), program
        assert {names[place]: value for (place,), value in asked["constants"].items()} == item.constexprs, program
        assert aligned == pointers | set(item.divisible), program
        options = json.loads(asked["specialization_data"])["options"]
        wanted = {"num_warps": item.num_warps, "num_stages": item.num_stages, **aot.OPTIONS, **item.options}
        assert {name: options[name] for name in wanted} == wanted, program


def test_how_products_are_rounded_is_no_matter_of_tritons_default(engine, launches, monkeypatch):
    monkeypatch.setattr(knobs.language, "default_fp_fusion", False)
    unroll(Setting("", 4, 4, 2, width=8), MASKS["none"])
    assert {launches.asked[program]["enable_fp_fusion"] for program in launches.programs} == {True}
