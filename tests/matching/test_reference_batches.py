"""Permutations cut into batches that are taken from the end, drawn when they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pad_fast
from pad_fast.errors import InputError
from pad_fast.models import ConvNet

from ..support.comparison import relative_error
from ..support.exactness import problem


def popped(count: int, size: int, steps: int) -> list[Tensor]:
    """As published loops draw them."""
    chunks: list[Tensor] = []
    found = []
    for _ in range(steps):
        if not chunks:
            chunks = list(torch.split(torch.randperm(count), size))
        found.append(chunks.pop())
    return found


@pytest.mark.parametrize(("count", "size", "steps"), [(7, 3, 8), (6, 3, 5), (5, 5, 3), (4, 9, 3), (1, 1, 2)])
def test_they_are_the_loops_own(count: int, size: int, steps: int) -> None:
    torch.manual_seed(3)
    expected = popped(count, size, steps)
    torch.manual_seed(3)
    batches = pad_fast.reference_batches(count, size, steps)
    assert batches.sizes == tuple(map(len, expected)) and len(batches) == steps
    assert all(torch.equal(found, wanted) for found, wanted in zip(batches, expected, strict=True))
    assert all(torch.equal(batches[step], wanted) for step, wanted in enumerate(expected)), (
        "a second look draws nothing"
    )


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    torch.manual_seed(3)
    batches = pad_fast.reference_batches(4, 2, 4)
    state = torch.get_rng_state()
    assert batches.sizes == (2, 2, 2, 2)
    assert torch.equal(torch.get_rng_state(), state)
    batches[1]
    after = torch.get_rng_state()
    assert not torch.equal(after, state)
    batches[0], batches[-3]
    assert torch.equal(torch.get_rng_state(), after)
    batches[2]
    assert not torch.equal(torch.get_rng_state(), after)


def test_a_generator_of_its_own_and_all_images_a_step() -> None:
    state = torch.get_rng_state()
    batches = pad_fast.reference_batches(5, None, 2, generator=torch.Generator().manual_seed(1))
    assert batches.sizes == (5, 5) and sorted(batches[1].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("gradient", ["exact", "unroll", "tesla"])
@pytest.mark.parametrize("augmented", ["not", "seeded", "by turns"])
def test_another_call_repeats_them(augmented: str, gradient: str) -> None:
    torch.manual_seed(0)
    network = ConvNet(channels=1, classes=3, width=4, depth=1, resolution=8).double()
    given = problem(network)
    dsa = pad_fast.DSA("color_crop_flip", mode="reference")
    augment = {"not": None, "seeded": dsa.seeded(3), "by turns": dsa}[augmented]
    given["batches"] = pad_fast.reference_batches(6, 4, 5)

    def loss(**changes: object) -> Tensor:
        torch.manual_seed(8)
        return pad_fast.trajectory_matching_loss(network, augment=augment, **{**given, "gradient": gradient, **changes})

    first, repeated = loss(), loss(batches=given["batches"])
    if augmented != "by turns":  # permutations that are not drawn again leave other numbers to the augmentation
        assert torch.equal(first, repeated)
    listed = loss(batches=list(given["batches"]))
    assert torch.equal(repeated, listed)
    leaves = [given["images"], given["labels"], given["lr"]]
    expected = torch.autograd.grad(listed, leaves)
    for found, wanted in zip(torch.autograd.grad(repeated, leaves), expected, strict=True):
        assert relative_error(found, wanted) < 1e-12


def test_every_image_several_times_in_its_batch() -> None:
    torch.manual_seed(3)
    expected = popped(5, 2, 4)
    torch.manual_seed(3)
    batches = pad_fast.reference_batches(5, 2, 4, samples=3)
    assert batches.sizes == (3, 6, 6, 3)
    assert all(torch.equal(found, torch.cat([once] * 3)) for found, once in zip(batches, expected, strict=True))


@pytest.mark.parametrize("numbers", [(0, 1, 1), (3, 0, 1), (3, 1, 0)])
def test_numbers_below_one_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="of reference_batches is 0; it counts from 1"):
        pad_fast.reference_batches(*numbers)
