"""Host code of training, scores, evaluation, distillation and gradient matching with the engine's real launches.

See test_launches.py. Nothing is computed: whatever kernels would have written is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="launches are bound by Triton")

import pad_fast
from pad_fast import DSA, ConvNet, DistilledDataset, evaluate, score, train_experts
from pad_fast.data import fit_normalization
from pad_fast.engines import Task, record_backends, select
from pad_fast.engines.triton import engine as engine_module
from pad_fast.matching.gradients import channels_of, match_gradients
from pad_fast.matching.masks import ParameterMask
from pad_fast.models import FlatNetwork
from pad_fast.training.optimizers import GSAM, SGD, Optimizer
from pad_fast.training.trainer import Trainer, TrainingStreams

from ...support.launches import Forbidden, Launch
from ...support.small import MODEL, NETS, QUIET, small_data
from ...support.triton import CPU

ALL = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture(autouse=True)
def zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel would have written holds zeros: losses and accuracies are numbers."""

    def zeroed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: make(*args, **options).zero_()

    for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(place, name, zeroed(getattr(place, name)))


def kernels_of(launches: list[Launch]) -> set[str]:
    return {launch.program.kernel for launch in launches}


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "gsam": lambda: GSAM(0.01),
    "sgd": lambda: SGD(0.01),
    "momentum": lambda: SGD(0.01, momentum=0.9, weight_decay=5e-4),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("net", ["digits", "odd33"])
def test_epochs_record_what_they_ran_plainly_and_compile_nothing_later(captures, launches, net, count, optimizer):
    """Three batches of an epoch are whole and one is short; every epoch has both."""
    sizes, streams = NETS[net], [torch.Generator().manual_seed(k) for k in range(count)]
    trainer = Trainer([FlatNetwork(ConvNet(**sizes)) for _ in range(count)], device=CPU, backend="triton")
    images = torch.randn(17, sizes["channels"], sizes["resolution"], sizes["resolution"])
    labels = torch.randint(0, sizes["classes"], (17,))
    draws, step = TrainingStreams(trainer, streams, DSA(ALL)), OPTIMIZERS[optimizer]()
    twice = 2 if optimizer == "gsam" else 1

    def epoch() -> list[Launch]:
        with launches.since() as found:
            trainer.epoch(images, labels, draws.batches(torch.arange(17), 5), step, draws.augment)
            trainer.accuracy(images, labels)
        return found

    for _ in range(5):
        epoch()
    assert len(captures.made) == 2 and not captures.unrehearsed()
    compiled, replayed = launches.programs, captures.replays
    later = epoch()
    assert {launch.program for launch in later} <= compiled
    assert captures.replays == replayed + 4 * twice
    updates = {kernel for kernel in kernels_of(later) if kernel.startswith("update.")}
    assert updates == (
        {f"update._{name}_kernel" for name in ("products", "ascent", "surrogate")}
        if twice == 2
        else {"update._sgd_kernel"}
    )


def test_a_step_that_reads_a_value_is_seen(captures, monkeypatch):
    real = engine_module.Steps.plain

    def reading(self: Any, *args: Any, **options: Any) -> Any:
        losses, logits = real(self, *args, **options)
        assert float(losses.sum()) == 0
        return losses, logits

    monkeypatch.setattr(engine_module.Steps, "plain", reading)
    task = Task(FlatNetwork(ConvNet(**NETS["digits"])), CPU, torch.float32)
    given = (task.network.initial(), torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(Forbidden, match="reads a value: __float__"):
        for _ in range(5):
            select("triton", task).loss_grad_logits(task, *given)


# -- whole commands -------------------------------------------------------------------------------------------------

EXPERTS = {"model": MODEL, "experts": 3, "epochs": 4, "batch": 10, "lr": 0.05, "dsa": ALL, "progress": QUIET}
SCORES = {"model": MODEL, "networks": 3, "epochs": 3, "batch": 8, "lr": 0.03, "momentum": 0.5, "progress": QUIET}


def distilled_set() -> DistilledDataset:
    data = small_data()
    white = fit_normalization(data, "mean-std")
    rows = torch.cat([data.images_of_class(label)[:2] for label in range(data.classes)])
    labels = data.train_labels[rows]
    soft = torch.nn.functional.one_hot(labels, data.classes).float()
    config = {"model": MODEL, "method": "pad", "dsa": ALL}
    return DistilledDataset(white.apply(data.train_images[rows]), soft, labels, 0.05, white, config)


def experts(out: Any, optimizer: str) -> None:
    train_experts(small_data(), out=out, backend="triton", device="cpu", optimizer=optimizer, **EXPERTS)


def scores(out: Any, method: str) -> None:
    score(small_data(), method=method, backend="triton", device="cpu", **SCORES)


def evaluation(out: Any, batch: str) -> None:
    options = {"models": (MODEL,), "repeats": 3, "epochs": 6, "full_epochs": 2, "batch": int(batch)}
    evaluate(distilled_set(), small_data(), backend="triton", device="cpu", progress=QUIET, **options)


def distillation(out: Any, trajectories: str) -> None:
    pad_fast.distill(
        small_data(),
        out=out,
        model=MODEL,
        ipc=2,
        iterations=6,
        trajectories=int(trajectories),
        syn_steps=3,
        batch_syn=4,
        num_experts=2,
        train_epochs=4,
        expert_epochs=2,
        max_start_epoch=1,
        score_networks=1,
        score_epochs=1,
        eval_networks=1,
        eval_epochs=2,
        eval_full_epochs=1,
        threshold=None,
        backend="triton",
        device="cpu",
        progress=QUIET,
    )


COMMANDS: list[tuple[Callable[[Any, str], None], str]] = [
    (experts, "gsam"),
    (experts, "sgd"),
    (scores, "el2n"),
    (scores, "forgetting"),
    (evaluation, "4"),
    (distillation, "1"),
    (distillation, "2"),
]


@pytest.mark.parametrize(("command", "option"), COMMANDS, ids=[f"{run.__name__}-{way}" for run, way in COMMANDS])
def test_commands_record_what_they_ran_plainly(captures, launches, tmp_path, command, option):
    with record_backends() as used:
        command(tmp_path, option)
    assert set(used) == {"triton"} and captures.made and captures.replays > len(captures.made)
    assert not captures.unrehearsed()


# -- gradient matching ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["digits", "odd33", "wide"])
def test_an_update_of_gradient_matching_compiles_once(captures, launches, net):
    """Real classes of several sizes, a mask, the kernel of the distance; the second update needs nothing new."""
    sizes = {**NETS[net], "classes": 2}
    network = FlatNetwork(ConvNet(**sizes))
    task = Task(network, CPU, torch.float32, "exact")
    shape = (sizes["channels"], sizes["resolution"], sizes["resolution"])
    channels = channels_of(network, ParameterMask.depth(0.3))
    found: list[set[Any]] = []
    for _ in range(2):
        with launches.since() as made:
            real, synthetic = [torch.zeros(count, *shape) for count in (5, 3)], torch.zeros(2, 1, *shape)
            match_gradients(select("triton", task), task, network.initial(), real, synthetic, channels)
        found.append({launch.program for launch in made})
    assert found[0] == found[1]
    assert {"gradient_distance._distance_kernel", "row_tiles._finish_kernel"} <= kernels_of(launches.made)
    assert len([kernel for kernel in kernels_of(launches.made) if kernel.startswith("first.")]) >= 6
