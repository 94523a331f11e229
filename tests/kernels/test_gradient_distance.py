"""The distance of gradient matching (on a GPU or in Triton's interpreter) against its twin and against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast import ConvNet, ParameterMask
from pad_fast.engines.triton.kernel_forms import KernelGradientDistance
from pad_fast.engines.triton.operations import Operations
from pad_fast.errors import InputError
from pad_fast.kernels import gradient_distance as kernel
from pad_fast.kernels.launch import counting
from pad_fast.matching.gradients import channels_of, gradient_distance, gradient_distance_and_direction
from pad_fast.models import FlatNetwork
from pad_fast.models.flat import Channels

from ..support.comparison import describe_difference, relative_error
from ..support.small import drawn

pytestmark = pytest.mark.usefixtures("poisoned", "on_kernel_device")

TOLERANCE = {torch.float32: 2e-7, torch.float64: 1e-13}  # worst seen 5e-8 and 2e-15
PIECES = {
    "a net's": (Channels(0, 3, 9), Channels(36, 4, 27), Channels(160, 2, 48)),
    "one entry each": (Channels(1, 5, 1),),
    "long stretches": (Channels(6000, 2, 33), Channels(10100, 1, 500)),
    "longer than a block": (Channels(5, 2, 4500),),
}
LENGTHS = {"a net's": 263, "one entry each": 6, "long stretches": 10700, "longer than a block": 9008}


def gradients(classes: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    real, other = drawn(classes + length, 2, classes, length)
    return real.to(dtype), (0.3 * real + 0.5 * other).to(dtype)


def run(real: Tensor, synthetic: Tensor, pieces: tuple[Channels, ...]) -> dict[str, Tensor]:
    where = kernel.table(pieces, real.shape[1], real.device)
    distance, v = kernel.distance_and_direction(real, synthetic, where)
    return {"distance": distance, "direction": v}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PIECES)
def test_against_the_twin(name: str, dtype: torch.dtype) -> None:
    real, synthetic = gradients(3, LENGTHS[name], dtype)
    mine = run(real, synthetic, PIECES[name])
    where = kernel.table(PIECES[name], real.shape[1], real.device)
    twin = kernel.naive_distance_and_direction(real, synthetic, where)
    for (key, actual), expected in zip(mine.items(), twin, strict=True):
        if name == "one entry each":  # parallel or opposite: nothing to gain
            assert float((actual - expected).abs().max()) < 1e-5, key
            continue
        assert relative_error(actual, expected) < TOLERANCE[dtype], f"{key}: " + describe_difference(actual, expected)


def test_against_autograd_on_a_network_under_a_mask() -> None:
    network = FlatNetwork(ConvNet(channels=3, classes=4, width=5, depth=2, resolution=8))
    channels = channels_of(network, ParameterMask.depth(0.3))
    real, synthetic = gradients(2, network.parameter_count, torch.float64)
    synthetic.requires_grad_()
    expected = gradient_distance(real, synthetic, channels)
    expected.sum().backward()
    mine = run(real, synthetic.detach(), channels)
    assert relative_error(mine["distance"], expected) < 1e-13
    assert synthetic.grad is not None
    assert relative_error(mine["direction"], synthetic.grad) < 1e-12
    assert bool((mine["direction"][:, : channels[0].offset] == 0).all())


def test_the_form_that_engines_offer_takes_strided_gradients_and_agrees_with_torch() -> None:
    real, synthetic = gradients(2, LENGTHS["a net's"], torch.float64)
    expected = gradient_distance_and_direction(real, synthetic, PIECES["a net's"])
    strided = torch.stack([real, synthetic], -1)
    with counting() as count:
        mine = KernelGradientDistance(Operations).value_and_direction(
            strided[..., 0], strided[..., 1], PIECES["a net's"]
        )
    assert "_distance_kernel" in [name for name, _ in count.launches]
    for actual, truth in zip(mine, expected, strict=True):
        assert relative_error(actual, truth) < TOLERANCE[torch.float64], describe_difference(actual, truth)


@pytest.mark.parametrize("side", ["real", "synthetic"])
def test_a_channel_without_direction_counts_one_and_pulls_nowhere(side: str) -> None:
    real, synthetic = gradients(2, LENGTHS["a net's"], torch.float32)
    (real if side == "real" else synthetic)[1, 36:63] = 0
    mine = run(real, synthetic, PIECES["a net's"])
    assert bool((mine["direction"][1, 36:63] == 0).all()) and bool(mine["direction"].isfinite().all())
    where = kernel.table(PIECES["a net's"], real.shape[1], real.device)
    assert relative_error(mine["distance"], kernel.naive_distance_and_direction(real, synthetic, where)[0]) < 2e-7


def test_every_entry_is_in_one_line() -> None:
    for name, pieces in PIECES.items():
        lines = kernel.table(pieces, LENGTHS[name], torch.device("cpu")).lines.tolist()
        entries = [at for first, length, _ in lines for at in range(first, first + length)]
        assert entries == list(range(LENGTHS[name])), name
        assert sum(length for _, length, compared in lines if compared) == sum(p.rows * p.length for p in pieces)


def test_one_launch_reads_both_gradients_once() -> None:
    real, synthetic = gradients(2, LENGTHS["a net's"], torch.float32)
    with counting() as count:
        run(real, synthetic, PIECES["a net's"])
    assert [name for name, _ in count.launches] == ["_distance_kernel", "_finish_kernel"]
    assert 3 * real.nbytes < count.bytes < 4 * real.nbytes


def test_what_does_not_fit_is_refused() -> None:
    real, synthetic = gradients(2, LENGTHS["a net's"], torch.float32)
    broken: list[tuple[Any, str]] = [(synthetic[:, :-1], "synthetic is"), (synthetic.double(), "float64")]
    for other, message in broken:
        with pytest.raises(InputError, match=message):
            run(real, other, PIECES["a net's"])
