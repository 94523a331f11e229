"""Steps on flat vectors (on a GPU or in Triton's interpreter) against their naive twins and the optimisers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels import row_tiles, update
from pad_fast.kernels.launch import counting, dry_run
from pad_fast.training.optimizers import GSAM, SGD

from ..support.comparison import describe_difference, relative_error
from ..support.small import drawn

pytestmark = pytest.mark.usefixtures("on_kernel_device")

TOLERANCE = {torch.float32: 3e-7, torch.float64: 1e-14}  # worst seen 4e-8 and 2e-16
SHAPES = [(1,), (37,), (1, 4096), (3, 1000), (2, 5001)]


def vectors(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> list[Tensor]:
    return list(drawn(sum(shape) + count, count, *shape).to(dtype))


def poisoned(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert relative_error(actual, expected) < TOLERANCE[expected.dtype], describe_difference(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestAgainstTwins:
    def test_sgd(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        theta, g = vectors(shape, dtype, 2)
        rates = [torch.tensor(0.07, dtype=dtype), torch.tensor([0.07])]
        for lr in rates + [torch.linspace(0.1, 0.3, len(theta))] * (len(shape) == 2):
            out = poisoned(theta)
            assert update.sgd(theta, g, lr, out) is out
            assert_close(out, update.naive_sgd(theta, g, lr.to(dtype)))

    def test_in_place(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        v, d = vectors(shape, dtype, 2)
        lr = torch.tensor(0.3, dtype=dtype)
        expected = update.naive_sgd(v, d, lr)
        update.sgd(v, d, lr, out=v)
        assert_close(v, expected)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    @pytest.mark.parametrize("decay", [0.0, 0.03])
    def test_momentum(self, shape: tuple[int, ...], dtype: torch.dtype, momentum: float, decay: float) -> None:
        theta, g, buffer = vectors(shape, dtype, 3)
        lr = torch.tensor(0.07, dtype=dtype)
        mine, twin = buffer.clone(), buffer.clone()
        out = update.momentum_sgd(theta, g, mine, lr, momentum=momentum, weight_decay=decay, out=poisoned(theta))
        assert_close(out, update.naive_momentum_sgd(theta, g, twin, lr, momentum=momentum, weight_decay=decay))
        assert_close(mine, twin)
        assert torch.equal(mine, buffer) == (momentum == 0)

    def test_gsam(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        theta, g1, g2 = vectors(shape, dtype, 3)
        lr = torch.tensor(0.07, dtype=dtype)
        out = update.gsam_ascent(theta, g1, rho=0.3, out=poisoned(theta))
        assert_close(out, update.naive_gsam_ascent(theta, g1, rho=0.3))
        out = update.gsam_step(theta, g1, g2, lr, alpha=0.4, out=poisoned(theta))
        assert_close(out, update.naive_gsam_step(theta, g1, g2, lr, alpha=0.4))


def test_long_rows_are_summed_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(row_tiles.tiles.__globals__, "MAX_TILES", 2)
    theta, g1, g2 = vectors((2, 9001), torch.float64, 3)
    assert row_tiles.tiles(9001, torch.float64, summed=True).per > 1
    assert_close(update.gsam_ascent(theta, g1, rho=0.3), update.naive_gsam_ascent(theta, g1, rho=0.3))
    lr = torch.tensor(0.07, dtype=torch.float64)
    assert_close(update.gsam_step(theta, g1, g2, lr, alpha=0.4), update.naive_gsam_step(theta, g1, g2, lr, alpha=0.4))


def test_more_partial_sums_than_are_added_at_a_time() -> None:
    partial = torch.stack(vectors((1100,), torch.float64, 2))
    out = poisoned(partial[:, 0])
    row_tiles.finish(out, partial, 3).run()
    assert_close(out, partial.sum(1) / 3)


def quadratic(size: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    (matrix,) = vectors((size, size), torch.float64, 1)

    def loss_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta @ matrix @ theta + theta.pow(4).sum(), (matrix + matrix.T) @ theta + 4 * theta.pow(3)

    return loss_and_grad


def test_rows_are_the_optimizers_of_their_own() -> None:
    start = 0.3 * vectors((3, 17), torch.float64, 1)[0]
    lr, field = torch.tensor(0.02, dtype=torch.float64), quadratic(17)
    gradients: Callable[[Tensor], Tensor] = lambda theta: torch.stack([field(row)[1] for row in theta])  # noqa: E731
    gsam = [GSAM(0.02, rho=0.3, alpha=0.4) for _ in start]
    sgd = [SGD(0.02, momentum=0.9, weight_decay=0.03) for _ in start]
    expected_gsam, expected_sgd = start, start
    mine_gsam, mine_sgd, buffer = start, start, torch.zeros_like(start)
    for _ in range(3):
        expected_gsam = torch.stack([o.step(row, field)[0] for o, row in zip(gsam, expected_gsam, strict=True)])
        expected_sgd = torch.stack([o.step(row, field)[0] for o, row in zip(sgd, expected_sgd, strict=True)])
        g1 = gradients(mine_gsam)
        g2 = gradients(update.gsam_ascent(mine_gsam, g1, rho=0.3))
        mine_gsam = update.gsam_step(mine_gsam, g1, g2, lr, alpha=0.4)
        mine_sgd = update.momentum_sgd(mine_sgd, gradients(mine_sgd), buffer, lr, momentum=0.9, weight_decay=0.03)
    assert relative_error(mine_gsam - start, expected_gsam - start) < 1e-14
    assert relative_error(mine_sgd - start, expected_sgd - start) < 1e-14
    assert relative_error(mine_gsam - start, mine_sgd - start) > 1e-2


def test_a_bad_number_reaches_its_row_only() -> None:
    theta, g1, g2 = vectors((3, 3000), torch.float32, 3)
    g1[1, 2999] = torch.nan
    out = update.gsam_step(theta, g1, g2, torch.tensor(0.1), alpha=0.4)
    assert bool(out[1].isnan().all()) and bool(out[[0, 2]].isfinite().all())


def test_zero_gradients_leave_the_parameters() -> None:
    theta = vectors((2, 100), torch.float32, 1)[0]
    zero = torch.zeros_like(theta)
    assert torch.equal(update.gsam_ascent(theta, zero, rho=0.3), theta)
    assert torch.equal(update.gsam_step(theta, zero, zero, torch.tensor(0.1), alpha=0.4), theta)


def test_launches_and_bytes() -> None:
    x = torch.ones(2, 5000)
    with dry_run() as count:
        update.sgd(x, x, torch.tensor(0.1))
    assert [name for name, _ in count.launches] == ["_sgd_kernel"]
    assert count.bytes == 3 * x.nbytes
    with counting() as count:
        update.gsam_step(x, x, x, torch.tensor(0.1), alpha=0.4)
    assert [name for name, _ in count.launches] == ["_products_kernel", "_surrogate_kernel"]
    assert 6 * x.nbytes < count.bytes < 6.1 * x.nbytes


def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(2, 100)
    with pytest.raises(InputError, match=r"g is torch.float32 \[2, 99\]"):
        update.sgd(x, x[:, :99], torch.tensor(0.1))
    with pytest.raises(InputError, match="contiguous"):
        update.gsam_ascent(x.T, x.T, rho=0.4, out=x.T)
    with pytest.raises(InputError, match=r"lr has shape \[3\]"):
        update.sgd(x, x, torch.ones(3))
