"""DSA on the device: operations and transposes against DSA.apply, draws against their definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.data.augment import DSA, MODES, OPERATIONS, DSADraw, value_ranges
from pad_fast.errors import ConfigError, InputError
from pad_fast.kernels import augment as kernels
from pad_fast.kernels.launch import counting, dry_run

pytestmark = pytest.mark.usefixtures("poisoned")

ALL = "_".join(OPERATIONS)
SHAPES = [(3, 1, 8, 8), (2, 3, 9, 9), (7, 4, 6, 11), (1, 2, 17, 5), (3, 3, 32, 32), (2, 5, 20, 26)]
# Relative to the largest pixel. The worst seen: 2e-14 and 2.2e-6 (the twin in float32 errs by up to 4.1e-6).
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6}


def table_of(draws: Sequence[DSADraw], *, device: torch.device) -> Tensor:
    """Draws for equally many images as a table `[len(draws), images, 4]`."""
    return kernels.table_of(draws, len(draws[0].values)).to(device)


def some_images(*shape: int, device: torch.device, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    values = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5 - 0.25
    return values.to(device=device, dtype=dtype)


def drawn(operation: str, n: int, shape: tuple[int, ...], *, seed: int = 1, **options: Any) -> DSADraw:
    return DSA(operation, **options).draw(n, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape and bool(expected.any())
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert float(error) <= tolerance, f"relative error {float(error):.2e}"


# ---------------------------------------------------------------- one operation


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_apply_and_transpose_equal_the_twin(
    kernel_device: torch.device, operation: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    images, grad = (some_images(*shape, device=kernel_device, seed=seed).to(dtype) for seed in (0, 1))
    draw = drawn(operation, shape[0], shape)
    (table,) = table_of([draw], device=kernel_device)
    out, back = kernels.apply(images, table), kernels.transpose(grad, table)
    assert out.dtype == back.dtype == dtype
    images, grad = images.double(), grad.double()
    assert_close(out, DSA.apply(images, draw), TOLERANCE[dtype])
    assert_close(out, kernels.naive_apply(images, table), TOLERANCE[dtype])
    assert_close(back, kernels.naive_transpose(grad, table), TOLERANCE[dtype])


@pytest.mark.parametrize("values", [(1 / 1.2, 1 / 1.2), (1.2, 1 / 1.2), (1.0, 1.0), (0.3, 2.5), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 12, 12), (1, 1, 7, 10), (1, 1, 1, 9), (1, 1, 6, 1)], ids=str)
def test_scale_at_and_beyond_its_limits(
    kernel_device: torch.device, values: tuple[float, float], shape: tuple[int, ...]
) -> None:
    check_both_ways(DSADraw("scale", torch.tensor([values])), shape, kernel_device)


@pytest.mark.parametrize("degrees", [0.0, 15.0, -45.0, 90.0, 400.0])
@pytest.mark.parametrize("shape", [(1, 2, 12, 12), (1, 1, 4, 13), (1, 1, 13, 4), (1, 1, 1, 9), (1, 1, 6, 1)], ids=str)
def test_rotate_at_and_beyond_its_limits(kernel_device: torch.device, degrees: float, shape: tuple[int, ...]) -> None:
    check_both_ways(DSADraw("rotate", torch.tensor([[math.radians(degrees)]])), shape, kernel_device)


def check_both_ways(draw: DSADraw, shape: tuple[int, ...], device: torch.device) -> None:
    images, grad = some_images(*shape, device=device), some_images(*shape, device=device, seed=1)
    (table,) = table_of([draw], device=device)
    torch.testing.assert_close(kernels.apply(images, table), DSA.apply(images, draw), rtol=0, atol=1e-11)
    # Coordinates that fall on a pixel may round to either side of it; the weight there is 0 or 1 to rounding.
    torch.testing.assert_close(
        kernels.transpose(grad, table), kernels.naive_transpose(grad, table), rtol=1e-12, atol=1e-11
    )


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dot_products_agree(kernel_device: torch.device, operation: str, dtype: torch.dtype) -> None:
    shape = (5, 3, 32, 32)
    images = some_images(*shape, device=kernel_device, dtype=dtype) - 0.4
    grad = some_images(*shape, device=kernel_device, dtype=dtype, seed=2) - 0.5
    (table,) = table_of([drawn(operation, 5, shape)], device=kernel_device)
    constant = kernels.apply(torch.zeros_like(images), table)
    forward = ((kernels.apply(images, table) - constant).double() * grad.double()).sum((1, 2, 3))
    back = (images.double() * kernels.transpose(grad, table).double()).sum((1, 2, 3))
    size = images.double().norm() * grad.double().norm()
    assert forward.abs().min() > 0 and ((forward - back).abs().max() / size) < TOLERANCE[dtype] / 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_half_precision_is_float32_rounded_once(
    kernel_device: torch.device, operation: str, dtype: torch.dtype
) -> None:
    images = some_images(3, 3, 10, 10, device=kernel_device, dtype=dtype)
    (table,) = table_of([drawn(operation, 3, (10, 10))], device=kernel_device)
    exact = kernels.apply(images.float(), table)
    found = kernels.apply(images, table)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_copied_pixels_are_copied_exactly(kernel_device: torch.device) -> None:
    images = some_images(4, 3, 11, 8, device=kernel_device, dtype=torch.float32)
    images[0, 0, 0, 0] = math.inf
    for operation in ("crop", "cutout", "flip", "none"):
        draw = drawn(operation, 4, (11, 8), seed=5)
        (table,) = table_of([draw], device=kernel_device)
        assert torch.equal(kernels.apply(images, table), DSA.apply(images, draw)), operation


# ---------------------------------------------------------------- trajectories, layouts, options


def mixed_table(trajectories: int, batch: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Another operation for each trajectory."""
    tables = [
        table_of([drawn(OPERATIONS[k % len(OPERATIONS)], batch, shape, seed=k)], device=device)
        for k in range(trajectories)
    ]
    return torch.cat(tables)


@pytest.mark.parametrize("layout", ["own", "expanded", "shared", "strided"])
def test_trajectories(kernel_device: torch.device, layout: str) -> None:
    count, batch, shape = 6, 3, (3, 10, 7)
    table = mixed_table(count, batch, shape[1:], kernel_device)
    if layout == "own":
        images = some_images(count, batch, *shape, device=kernel_device)
    elif layout == "strided":
        images = some_images(batch, 2 * count, *shape, device=kernel_device)[:, ::2].transpose(0, 1)
    else:
        images = some_images(batch, *shape, device=kernel_device)
    given = images.expand(count, -1, -1, -1, -1) if layout == "expanded" else images
    out = kernels.apply(given, table)
    assert out.shape == (count, batch, *shape) and out.is_contiguous()
    for k in range(count):
        alone = kernels.naive_apply(images if layout in ("expanded", "shared") else images[k], table[k])
        torch.testing.assert_close(out[k], alone, rtol=0, atol=1e-12)
    grad = some_images(count, batch, *shape, device=kernel_device, seed=4)
    back = kernels.transpose(grad, table)
    expected = kernels.naive_transpose(grad, table)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-12)
    again = kernels.transpose(grad.transpose(0, 1).contiguous().transpose(0, 1), table)
    assert torch.equal(back, again)


@pytest.mark.parametrize("per_trajectory", [False, True])
@pytest.mark.parametrize("siamese", [False, True])
def test_draws_may_be_shared(kernel_device: torch.device, per_trajectory: bool, siamese: bool) -> None:
    images = some_images(4, 5, 3, 8, 8, device=kernel_device)
    table = mixed_table(4 if per_trajectory else 1, 5, (8, 8), kernel_device)
    table = table[:, :1] if siamese else table
    table = table if per_trajectory else table[0]
    assert_close(kernels.apply(images, table), kernels.naive_apply(images, table), 1e-12)
    assert_close(kernels.transpose(images, table), kernels.naive_transpose(images, table), 1e-12)


def test_each_image_may_have_its_own_operation(kernel_device: torch.device) -> None:
    images = some_images(6, 3, 12, 12, device=kernel_device)
    table = mixed_table(6, 6, (12, 12), kernel_device).diagonal().T
    assert table[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert_close(kernels.apply(images, table), kernels.naive_apply(images, table), 1e-12)
    assert_close(kernels.transpose(images, table), kernels.naive_transpose(images, table), 1e-12)


@pytest.mark.parametrize("trajectories", [None, 3])
def test_index_takes_rows_on_the_way(kernel_device: torch.device, trajectories: int | None) -> None:
    images = some_images(9, 3, 8, 8, device=kernel_device)
    index = torch.tensor([8, 0, 3, 3], device=kernel_device)
    table = mixed_table(trajectories or 1, 4, (8, 8), kernel_device)
    table = table if trajectories else table[0]
    out = kernels.apply(images, table, index=index)
    assert torch.equal(out, kernels.apply(images[index], table))
    torch.testing.assert_close(out, kernels.naive_apply(images, table, index=index), rtol=0, atol=1e-12)


def test_empty_batches(kernel_device: torch.device) -> None:
    images = torch.zeros(0, 3, 8, 8, device=kernel_device)
    table = torch.zeros(0, 4, device=kernel_device)
    assert kernels.apply(images, table).shape == images.shape


def test_launches_and_bytes_are_counted(kernel_device: torch.device) -> None:
    images = some_images(5, 3, 8, 8, device=kernel_device, dtype=torch.float32)
    table = mixed_table(2, 5, (8, 8), kernel_device)
    with counting() as count:
        out = kernels.apply(images.expand(2, -1, -1, -1, -1), table)
        kernels.transpose(out, table)
    assert [name for name, _ in count.launches] == ["_augment_kernel"] * 2
    one = images.numel() * 4
    assert [cost.bytes for _, cost in count.launches] == [3 * one + 160, 4 * one + 160]
    with dry_run() as count:
        unwritten = kernels.apply(images, table)
    assert bool(unwritten.isnan().all()) and len(count.launches) == 1


# ---------------------------------------------------------------- tables and refusals


def test_refusals(kernel_device: torch.device) -> None:
    images = torch.zeros(5, 3, 8, 8, device=kernel_device)
    table = torch.zeros(5, 4, device=kernel_device)
    for wrong in (images[0], images.long(), "images"):
        with pytest.raises(InputError, match="floating point images"):
            kernels.apply(wrong, table)  # type: ignore[arg-type]
    for wrong in (table[:4], table[:, :3], table.double(), table.expand(2, 5, 4).expand(3, 2, 5, 4), table[0]):
        with pytest.raises(InputError, match="no draw table"):
            kernels.apply(images, wrong)
    with pytest.raises(InputError, match="no draw table"):
        kernels.transpose(images.expand(3, -1, -1, -1, -1), table.expand(2, -1, -1))
    with pytest.raises(InputError, match="is on meta"):
        kernels.apply(images, table.to("meta"))
    with pytest.raises(InputError, match="index takes rows"):
        kernels.apply(images, table, index=torch.zeros(5, dtype=torch.int32, device=kernel_device))
    for seed in (torch.zeros(2, dtype=torch.int64), torch.zeros(1), 3):
        with pytest.raises(InputError, match="one int64 number"):
            kernels.draw(seed, steps=1, batch=2, shape=(8, 8))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown"):
        kernels.draw(
            torch.zeros(1, dtype=torch.int64, device=kernel_device), steps=1, batch=2, shape=(8, 8), strategy="x"
        )


# ---------------------------------------------------------------- drawing


def draw(seed: int, device: torch.device, **options: Any) -> Tensor:
    options = {"steps": 3, "batch": 5, "shape": (8, 12)} | options
    return kernels.draw(torch.tensor(seed, device=device), **options)


@pytest.mark.parametrize("seed", [0, 7, -3, 2**62 + 12345], ids=str)
@pytest.mark.parametrize("strategy", [ALL, "rotate_crop_color", "cutout", "none"])
def test_draws_equal_the_twin(kernel_device: torch.device, seed: int, strategy: str) -> None:
    options: dict[str, Any] = {"steps": 6, "trajectories": 3, "batch": 7, "shape": (3, 17, 9), "strategy": strategy}
    found = draw(seed, kernel_device, **options)
    expected = kernels.naive_draw(torch.tensor(seed, device=kernel_device), **options)
    assert found.shape == (6, 3, 7, 4)
    assert torch.equal(found[..., 0], expected[..., 0])
    # A device may round u * span + low once; whole numbers are exact.
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=1e-7)
    assert torch.equal(found, draw(seed, kernel_device, **options))


def test_draws_of_philox_equal_published_vectors() -> None:
    # Random123's known answers for philox4x32-10.
    zero = kernels._philox(0, [torch.tensor(0)] * 4)
    assert [int(word) for word in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = kernels._philox(-1, [torch.tensor(0xFFFFFFFF)] * 4)
    assert [int(word) for word in ones] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    digits = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    pi = kernels._philox(0x299F31D0A4093822, [torch.tensor(word) for word in digits])
    assert [int(word) for word in pi] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_draws_depend_on_step_trajectory_and_image_alone(kernel_device: torch.device) -> None:
    few = draw(5, kernel_device, steps=2, trajectories=2, batch=3)
    many = draw(5, kernel_device, steps=4, trajectories=3, batch=300)
    assert torch.equal(few, many[:2, :2, :3])
    flat = many[..., 1].flatten()
    assert flat.unique().numel() > 0.9 * flat.numel() * (many[..., 0].flatten() != 3).float().mean() * 0.2
    assert not torch.equal(draw(6, kernel_device), draw(5, kernel_device))
    assert not torch.equal(draw(5 + 2**32, kernel_device), draw(5, kernel_device))


def test_siamese_draws_one_row(kernel_device: torch.device) -> None:
    table = draw(9, kernel_device, siamese=True)
    assert table.shape == (3, 1, 1, 4)
    assert torch.equal(table, draw(9, kernel_device)[:, :, :1])


def test_one_operation_per_step_and_trajectory(kernel_device: torch.device) -> None:
    table = draw(2, kernel_device, steps=40, trajectories=2, batch=6)
    assert torch.equal(table[..., 0], table[:, :, :1, 0].expand(-1, -1, 6))
    assert bool((table[:, 0, 0, 0] != table[:, 1, 0, 0]).any())  # trajectories draw for themselves


@pytest.mark.parametrize("strategy", [ALL, "flip_scale_color"])
def test_operations_are_equally_likely(strategy: str) -> None:
    operations = strategy.split("_")
    steps = 6000
    table = kernels.naive_draw(torch.tensor(11), steps=steps, batch=1, shape=(8, 8), strategy=strategy)
    counts = table[:, 0, 0, 0].long().bincount(minlength=6)
    expected = steps / len(operations)
    chosen = torch.tensor([OPERATIONS.index(operation) for operation in operations])
    assert int(counts[chosen].sum()) == steps
    statistic = float(((counts[chosen] - expected) ** 2 / expected).sum())
    assert statistic < 25  # chi-square, 5 degrees of freedom: exceeded once in 7000 seeds


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_numbers_are_distributed_as_those_of_dsa(kernel_device: torch.device, operation: str, mode: str) -> None:
    count, shape = 4000, (3, 17, 32)
    found = draw(3, kernel_device, steps=1, batch=count, shape=shape, strategy=operation)[0, 0].cpu().double()
    reference = drawn(operation, count, shape, mode=mode, seed=8).values.double()
    low, span, whole = value_ranges(operation, 17, 32, torch.device("cpu"))
    assert not found[:, 1 + len(low) :].any()
    for column in range(len(low)):
        values = found[:, 1 + column]
        uniform = (values - low[column].double()) / span[column].double()
        assert -1e-7 <= float(uniform.min()) and float(uniform.max()) < 1 + 1e-7
        if whole:
            places = int(span[column])
            counts = (values - low[column]).round().long().bincount(minlength=places).double()
            assert torch.equal(values, values.round()) and len(counts) == places
            expected = count / places
            assert float(((counts - expected) ** 2 / expected).sum()) < places + 5 * math.sqrt(2 * places) + 5
        # Two-sample Kolmogorov-Smirnov at the level 1e-4.
        assert distance(values, reference[:, column]) < 2.23 * math.sqrt(2 / count)
    for column in range(1, len(low)):
        correlation = float(np.corrcoef(found[:, 1], found[:, 1 + column])[0, 1])
        assert abs(correlation) < 4 / math.sqrt(count)


def distance(first: Tensor, second: Tensor) -> float:
    points = torch.cat([first, second]).unique()
    return float((cumulative(first, points) - cumulative(second, points)).abs().max())


def cumulative(sample: Tensor, points: Tensor) -> Tensor:
    return torch.searchsorted(sample.sort().values, points, right=True) / len(sample)


def test_successive_numbers_are_unrelated(kernel_device: torch.device) -> None:
    table = draw(4, kernel_device, steps=64, batch=64, strategy="rotate")[:, 0, :, 1].cpu().double()
    for shifted in (table.roll(1, 0), table.roll(1, 1), table.roll((1, 1), (0, 1))):
        assert abs(float(np.corrcoef(table.flatten(), shifted.flatten())[0, 1])) < 4 / 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_captured_graph_serves_every_draw() -> None:
    device = torch.device("cuda")
    images = some_images(4, 3, 16, 16, device=device, dtype=torch.float32)
    seed = torch.zeros(1, dtype=torch.int64, device=device)

    def run() -> tuple[Tensor, Tensor]:
        table = kernels.draw(seed, steps=5, batch=4, shape=(16, 16))
        outs = torch.stack([kernels.apply(images, table[step, 0]) for step in range(5)])
        return outs, torch.stack([kernels.transpose(out, table[step, 0]) for step, out in enumerate(outs)])

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for value in (1, 2, 3):
        seed.fill_(value)
        graph.replay()
        assert all(torch.equal(found, fresh) for found, fresh in zip(captured, run(), strict=True))
