"""The matching loss (on a GPU or in Triton's interpreter) against its naive twin and against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels import matching, row_tiles
from pad_fast.kernels.launch import counting
from pad_fast.matching import normalized_distance
from pad_fast.models.selection import keep_largest

from ..support.comparison import describe_difference, relative_error
from ..support.small import drawn

pytestmark = [
    pytest.mark.usefixtures("poisoned", "on_kernel_device"),
    # NumPy under the interpreter says so where a mask leaves nothing.
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning"),
]

TOLERANCE = {torch.float32: 2e-7, torch.float64: 1e-14}  # worst seen 4e-8 and 1e-15
MASKS = [(0, 0), (1, 0), (0.5, 0), (0, 1), (0, 0.5), (0, 0.99), (0.3, 0.4)]
SHAPES = [(1, 7), (3, 300), (1, 2048), (2, 2100)]
DTYPES = [torch.float32, torch.float64]


def vectors(shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    start, end, target = drawn(seed + sum(shape), 3, *shape)
    return (start + 0.3 * end).to(dtype), start.to(dtype), (start + 0.5 * target).to(dtype)


def counts(mask: tuple[float, float], length: int) -> dict[str, int]:
    first_kept, dropped = mask
    as_count = lambda part: part if isinstance(part, int) else int(part * length)  # noqa: E731
    return {"first_kept": as_count(first_kept), "dropped": as_count(dropped)}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert relative_error(actual, expected) < TOLERANCE[expected.dtype], describe_difference(actual, expected)


class ByKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kwargs: dict[str, int], *vectors: Tensor) -> Tensor:
        ctx.kwargs = kwargs
        ctx.save_for_backward(*vectors)
        return matching.distance(*vectors, **kwargs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wants = ctx.needs_input_grad[1:]
        return None, *matching.distance_gradients(*ctx.saved_tensors, grad, **ctx.kwargs, wants=wants)


def by_kernels(*vectors: Tensor, **kwargs: int) -> Tensor:
    """Differentiable, for vectors of any shapes that expand to each other's."""
    return ByKernels.apply(kwargs, *torch.broadcast_tensors(*vectors))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_twin(shape: tuple[int, int], mask: tuple[float, float], dtype: torch.dtype) -> None:
    end, start, target = vectors(shape, dtype)
    kwargs = counts(mask, shape[1])
    grad = torch.linspace(0.7, 1.9, shape[0]).to(dtype)
    loss, measured = matching.distance_forward(end, start, target, **kwargs)
    assert_close(loss, matching.naive_distance(end, start, target, **kwargs))
    mine = matching.distance_backward(measured, end, start, target, grad)
    twin = matching.naive_distance_gradients(end, start, target, grad, **kwargs)
    for actual, expected in zip(mine, twin, strict=True):
        assert actual is not None
        assert_close(actual, expected)
        assert torch.equal(actual == 0, expected == 0)


@pytest.mark.parametrize("shape", [(50,), (3, 700)], ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_twin_and_kernels_against_autograd(shape: tuple[int, ...], mask: tuple[float, float]) -> None:
    end, start, target = leaves = vectors(shape, torch.float64)
    for leaf in leaves:
        leaf.requires_grad_()
    grad = torch.linspace(0.7, 1.9, 3, dtype=torch.float64)[: shape[0] if len(shape) == 2 else 1].view(shape[:-1])
    kwargs = counts(mask, shape[-1])
    expected_loss = normalized_distance(end, start, target, **kwargs)
    expected = torch.autograd.grad(expected_loss, leaves, grad)
    loss = by_kernels(end, start, target, **kwargs)
    assert loss.shape == expected_loss.shape and relative_error(loss, expected_loss) < 1e-14
    twin = matching.naive_distance_gradients(end.detach(), start.detach(), target.detach(), grad, **kwargs)
    for actual, again, wanted in zip(torch.autograd.grad(loss, leaves, grad), twin, expected, strict=True):
        assert relative_error(actual, wanted) < 1e-14
        assert relative_error(again, wanted) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("dropped", [1, 2, 333, 500, 600, 899, 999])
def test_ties_are_dropped_by_position(dropped: int, dtype: torch.dtype) -> None:
    _, start, target = (x.mul(4).round().div(4) for x in vectors((2, 1000), dtype))
    steps = (7 * start).long() % 7 - 3
    end = target + steps.clamp(-2, 2) * (steps.abs() > 1)  # few different squared errors, many of them 0
    squares = (end - target).square()
    assert len(squares.unique()) == 2 and 0.3 < float((squares == 0).double().mean()) < 0.6
    expected = keep_largest(squares, dropped)
    ones = torch.ones(2, dtype=dtype)
    _, d_start, _ = matching.distance_gradients(end, start, target, ones, dropped=dropped)
    assert torch.equal(d_start != 0, expected & (start != target))


def test_the_largest_positions_count_too() -> None:
    """More than 65,536 equal entries: the position takes three digits."""
    length, dropped = 70001, 67003
    start = torch.linspace(1, 2, length)[None]
    target = torch.zeros_like(start)
    end = torch.ones_like(start)
    end[0, ::35] = 0.5  # 2001 smaller ones go first
    loss, measured = matching.distance_forward(end, start, target, first_kept=0, dropped=dropped)
    gone = ~keep_largest(end.square(), dropped)[0]
    assert measured.cut is not None
    assert measured.cut[0, 1] == int((gone & (end[0] == 1)).nonzero().max())
    expected = matching.naive_distance(end, start, target, dropped=dropped)
    assert relative_error(loss, expected) < 1e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_rows_of_several_blocks_per_tile(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(row_tiles.tiles.__globals__, "MAX_TILES", 2)
    end, start, target = vectors((2, 9001), dtype)
    grad = torch.tensor([0.7, 1.9], dtype=dtype)
    assert row_tiles.tiles(9001, dtype, summed=True).per > 1
    for kwargs in ({"first_kept": 4000}, {"dropped": 4500}):
        mine = matching.distance_gradients(end, start, target, grad, **kwargs)
        for actual, expected in zip(
            mine, matching.naive_distance_gradients(end, start, target, grad, **kwargs), strict=True
        ):
            assert_close(actual, expected)


def test_only_what_is_wanted_is_computed() -> None:
    end, start, target = vectors((2, 300), torch.float32)
    leaf = end.clone().requires_grad_()
    with counting() as count:
        by_kernels(leaf, start, target, first_kept=100).sum().backward()
    assert [name for name, _ in count.launches] == ["_sums_kernel", "_ratio_kernel"] * 2 + ["_gradients_kernel"]
    assert count.launches[-1][1].bytes == 3 * 2 * 200 * 4 + end.nbytes
    assert leaf.grad is not None
    assert_close(leaf.grad, matching.naive_distance_gradients(end, start, target, torch.ones(2), first_kept=100)[0])


def test_launches_of_a_loss_mask() -> None:
    end, start, target = vectors((2, 300), torch.float32)
    with counting() as count:
        matching.distance(end, start, target, dropped=100)
    names = [name for name, _ in count.launches]
    assert names == ["memset"] + ["_count_kernel"] * 6 + ["_sums_kernel", "_ratio_kernel"]


def test_one_gradient_for_all_rows() -> None:
    end, start, target = vectors((3, 300), torch.float64)
    one, three = torch.tensor(0.7, dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64)
    for actual, expected in zip(
        matching.distance_gradients(end, start, target, one),
        matching.distance_gradients(end, start, target, three),
        strict=True,
    ):
        assert torch.equal(actual, expected)
    assert_close(matching.distance(end, start, target), matching.naive_distance(end, start, target))


def test_shared_and_strided_rows() -> None:
    end, start, target = vectors((3, 300), torch.float64)
    wide = torch.full((3, 2, 300), torch.nan, dtype=torch.float64)
    wide[:, 0] = end
    shared, columns = target[1], start.T.contiguous().T
    expected = normalized_distance(end, start, shared, dropped=100)
    for actual in (
        by_kernels(wide[:, 0], start, shared, dropped=100),
        by_kernels(end, columns, shared.expand(3, 300), dropped=100),
    ):
        assert relative_error(actual, expected) < 1e-14
    leaf = shared.clone().requires_grad_()
    by_kernels(end, start, leaf, dropped=100).sum().backward()
    again = shared.clone().requires_grad_()
    normalized_distance(end, start, again, dropped=100).sum().backward()
    assert leaf.grad is not None and again.grad is not None and relative_error(leaf.grad, again.grad) < 1e-14


def test_equal_start_and_target_give_infinity_as_the_formula_does() -> None:
    end, _, target = vectors((2, 300), torch.float32)
    start = target.clone()
    start[1, 7] += 1
    for kwargs in ({}, {"first_kept": 8}, {"dropped": 50}):
        assert torch.equal(
            by_kernels(end, start, target, **kwargs).isinf(),
            normalized_distance(end, start, target, **kwargs).isinf(),
        )
    d_end, _, _ = matching.distance_gradients(end, start, target, torch.ones(2), first_kept=8)
    assert bool(d_end[:, 8:].isinf().all()) and bool((d_end[:, :8] == 0).all())


@pytest.mark.parametrize(
    "kwargs", [{"first_kept": 300}, {"dropped": 300}, {"first_kept": 200, "dropped": 100}], ids=str
)
def test_a_mask_that_leaves_nothing_gives_nan(kwargs: dict[str, int]) -> None:
    end, start, target = vectors((2, 300), torch.float32)
    assert bool(normalized_distance(end, start, target, **kwargs).isnan().all())
    assert bool(by_kernels(end, start, target, **kwargs).isnan().all())


def test_a_bad_number_shows_in_its_row() -> None:
    end, start, target = vectors((3, 300), torch.float32)
    end[1, 250] = torch.nan
    end[2, 3] = torch.inf
    for kwargs in ({}, {"first_kept": 100}, {"dropped": 150}):
        expected = normalized_distance(end, start, target, **kwargs)
        actual = by_kernels(end, start, target, **kwargs)
        assert torch.allclose(actual, expected, equal_nan=True, rtol=1e-6)
        assert bool(actual[1].isnan()) and bool(actual[0].isfinite())


def test_the_same_bits_every_time() -> None:
    end, start, target = vectors((2, 2100), torch.float32)
    first = matching.distance_gradients(end, start, target, torch.ones(2), dropped=900)
    second = matching.distance_gradients(end, start, target, torch.ones(2), dropped=900)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    end, start, target = vectors((2, 300), torch.float32)
    with pytest.raises(InputError, match="target is torch.float64"):
        matching.distance(end, start, target.double())
    with pytest.raises(InputError, match="dropped is -1"):
        matching.distance(end, start, target, dropped=-1)
    with pytest.raises(InputError, match="pass float32 or float64"):
        matching.distance(end.half(), start.half(), target.half())
