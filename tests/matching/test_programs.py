"""Programs of five families before and after the change that docs/drop-in.md describes, augmentation on, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pad_fast
from pad_fast.engines import record_backends

from ..support.comparison import describe_difference, relative_error
from ..support.programs import PARAM, PROGRAMS, STRATEGY, Experiment, after, before, write_buffer
from .test_drop_in import NATIVE, SHAPE, Reparametrised, net_of

TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def buffers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_buffer(tmp_path_factory.mktemp("experts") / "buffer", net_of())


def experiment(name: str, buffers: Path, **changes: Any) -> Experiment:
    return Experiment(PROGRAMS[name], lambda: Reparametrised(net_of()), buffers, classes=4, shape=SHAPE, **changes)


@pytest.fixture(scope="module")
def usual(buffers: Path) -> Callable[[str], Experiment]:
    """The program as it was, once for all tests."""
    found: dict[str, Experiment] = {}

    def run(name: str) -> Experiment:
        if name not in found:
            found[name] = experiment(name, buffers).run(before)
        return found[name]

    return run


def close(found: Tensor, expected: Tensor) -> None:
    assert relative_error(found, expected) < TOLERANCE, describe_difference(found, expected)


AUGMENTATIONS = {"their own": {}, "ours": {"augment": pad_fast.DSA.from_reference(STRATEGY, PARAM)}}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_losses_gradients_and_images(
    name: str, augmentation: str, usual: Callable[[str], Experiment], buffers: Path
) -> None:
    old, new = usual(name), experiment(name, buffers, **AUGMENTATIONS[augmentation])
    factor = old.program.approximation or 1.0
    new.lr_img *= factor
    with record_backends() as used:
        new.run(after)
    assert used == [NATIVE] * 5
    assert len(set(old.losses)) == 5
    assert new.losses == pytest.approx(old.losses, rel=TOLERANCE)
    for theirs, ours in zip(old.gradients, new.gradients, strict=True):
        close(factor * ours[0], theirs[0])
        for found, expected in zip(ours[1:], theirs[1:], strict=True):
            close(found, expected)
    untouched = experiment(name, buffers)
    for found, expected, start in zip(new.learned, old.learned, untouched.learned, strict=True):
        assert float((expected - start).detach().norm()) > 1e-4 * float(expected.detach().norm()), "it was not updated"
        close(found, expected)
    close(new.ema, old.ema)


def test_two_draws_that_are_not_by_turns_are_others(usual: Callable[[str], Experiment], buffers: Path) -> None:
    """Why batches are drawn on the way: in a list made ahead they are other ones."""

    def ahead(experiment: Experiment, student: Any, start: Tensor, target: Tensor) -> Tensor:
        drawn = list(pad_fast.reference_batches(len(experiment.images), experiment.batch_syn, experiment.syn_steps))
        loss = pad_fast.trajectory_matching_loss(
            student, start, target, experiment.images, experiment.labels, experiment.lr,
            batches=drawn, augment=experiment.augment,
        )  # fmt: skip
        loss.backward()
        return loss

    theirs, ours = usual("MTT").losses, experiment("MTT", buffers).run(ahead, iterations=1).losses
    assert abs(ours[0] - theirs[0]) > 1e-3 * theirs[0]


@pytest.mark.parametrize("name", PROGRAMS)
def test_files_in_and_out(name: str, usual: Callable[[str], Experiment], buffers: Path, tmp_path: Path) -> None:
    store = pad_fast.ExpertStore.open(buffers)
    for index, trajectory in enumerate(torch.load(buffers / "replay_buffer_0.pt")):
        for epoch, snapshot in enumerate(trajectory):
            assert torch.equal(store.snapshot(index, epoch), torch.cat([tensor.reshape(-1) for tensor in snapshot]))
    old = usual(name)
    folder = old.write(tmp_path / "logged_files")
    found = pad_fast.load(folder) if old.program.soft else pad_fast.load(folder, lr=0.03)
    assert torch.equal(found.images, old.images.detach().float())
    assert torch.equal(found.targets, old.labels.detach().float() if old.program.soft else old.labels)
    assert found.lr == (float(old.lr.detach()) if old.program.soft else 0.03)


def test_the_mask_of_the_pad_program_matters(usual: Callable[[str], Experiment], buffers: Path) -> None:
    plain = replace(PROGRAMS["PAD"], loss_ratio=0.0)
    other = experiment("PAD", buffers)
    other.program = plain
    assert other.run(before, iterations=1).losses[0] != pytest.approx(usual("PAD").losses[0], rel=1e-3)
