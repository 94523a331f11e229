"""Norm, ReLU and pooling in one kernel: the naive twins against autograd, the kernels against the twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ..support.comparison import describe_difference, relative_error

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels import block
from pad_fast.kernels.block import operations
from pad_fast.kernels.launch import dry_run

# Odd sizes, a single image, more channels than a tile has; the last is read in blocks, twice.
SHAPES = [(1, 1, 5, 7, 3), (2, 3, 6, 4, 17), (3, 2, 8, 8, 5), (1, 2, 3, 2, 40), (1, 1, 37, 66, 9)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}  # worst seen: 1.5e-15, 7.6e-7
GUARD = -7.5


class Problem:
    """Inputs of one block; the norm's parameters are columns of a flat vector."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        K, B, H, W, C = shape
        generator = torch.Generator().manual_seed(seed)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(device, dtype)

        self.z, self.zd = draw(*shape) + 3, draw(*shape) - 2
        self.flat = draw(4, K, 2 * C + 5)
        self.g, self.b, self.gd, self.bd = (vector[:, 2 : 2 + C] for vector in self.flat)
        self.go, self.god = draw(2, K, B, H // 2, W // 2, C)
        self.out = draw(K, 2 * C + 5)
        self.out[:, C : C + 2] = self.out[:, 2 * C + 2 :] = GUARD
        self.offsets = (C + 2, 0)  # g behind b: no order is assumed

    def double(self) -> Problem:
        other = object.__new__(Problem)
        other.__dict__ = {
            name: value.double().clone() if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return other


def run(problem: Problem, prefix: str, accumulate: bool) -> dict[str, Tensor]:
    """Every output of the four operations, by kernel (prefix "") or by twin ("naive_")."""
    p, found = problem, {}
    op: Callable[[str], Callable[..., tuple[Tensor, ...]]] = lambda name: getattr(block, prefix + name)  # noqa: E731
    found["o"], stats = op("forward")(p.z, p.g, p.b)
    found["mean"], found["r"] = stats.unbind(2)
    found["tangent o"], found["od"], dual = op("tangent")(p.z, p.zd, p.g, p.b, p.gd, p.bd)
    for name, row in zip(("tangent mean", "tangent r", "mean of zd", "s"), dual.unbind(2), strict=True):
        found[name] = row
    found["plain gz"] = op("backward")(p.z, stats, p.g, p.b, p.god, p.out, *p.offsets, accumulate=accumulate)
    found["plain g and b"] = p.out.clone()
    inputs = (p.z, p.zd, dual, p.g, p.b, p.gd, p.bd, p.go, p.god, p.out)
    found["gz"], found["gzd"] = op("adjoint")(*inputs, *p.offsets, accumulate=accumulate)
    found["g and b"] = p.out
    return found


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_naive_twins_are_the_derivatives_of_the_block(shape: tuple[int, ...]) -> None:
    p = Problem(shape, torch.float64, torch.device("cpu"))
    C = shape[-1]

    def whole(z: Tensor, g: Tensor, b: Tensor) -> Tensor:
        # Not torch's instance norm: its forward-mode derivative takes the statistics for constants.
        centred = z - z.mean((2, 3), keepdim=True)
        n = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        a = (g[:, None, None, None] * n + b[:, None, None, None]).relu()
        rows = [torch.nn.functional.avg_pool2d(k.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) for k in a]
        return torch.stack(rows)

    def dual(z: Tensor, zd: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(whole, (z, g, b), (zd, p.gd, p.bd))

    before = p.out.clone()
    found = run(p, "naive_", accumulate=False)
    (o, od), pull = torch.func.vjp(dual, p.z, p.zd, p.g, p.b)
    gz, gzd, gg, gb = pull((p.go, p.god))
    _, pull = torch.func.vjp(whole, p.z, p.g, p.b)
    plain, plain_g, plain_b = pull(p.god)
    pairs = [(found["o"], o), (found["tangent o"], o), (found["od"], od), (found["gz"], gz), (found["gzd"], gzd)]
    pairs += [(found["plain gz"], plain), (found["plain g and b"][:, C + 2 : 2 * C + 2], plain_g)]
    pairs += [(found["plain g and b"][:, :C], plain_b)]
    pairs += [(found["g and b"][:, C + 2 : 2 * C + 2], gg), (found["g and b"][:, :C], gb)]
    pairs += [(found["g and b"][:, C : C + 2], before[:, C : C + 2])]  # untouched
    for actual, expected in pairs:
        assert relative_error(actual, expected) < 1e-10, describe_difference(actual, expected)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_agree_with_their_twins(
    shape: tuple[int, ...], dtype: torch.dtype, accumulate: bool, kernel_device: torch.device, poisoned: None
) -> None:
    if accumulate and shape[2] > 8:
        pytest.skip("accumulating has nothing to do with the size of a plane")
    p = Problem(shape, dtype, kernel_device)
    expected = run(p.double(), "naive_", accumulate)
    assert 0.1 < float((expected["o"] > 0).double().mean()) <= 1  # neither all nor nothing is let through
    for name, actual in run(p, "", accumulate).items():
        error = relative_error(actual, expected[name])
        assert error < TOLERANCE[dtype], f"{name}: {describe_difference(actual, expected[name])}"
    C = shape[-1]
    assert accumulate or bool((p.out[:, C : C + 2] == GUARD).all() and (p.out[:, 2 * C + 2 :] == GUARD).all())


def test_large_planes_are_read_in_blocks() -> None:
    _, small = operations._configuration(SHAPES[2], torch.float32, maps=2)
    _, large = operations._configuration(SHAPES[4], torch.float32, maps=2)
    windows = 19 * 33
    assert small["BW"] == 16 and large["BW"] < windows
    for shape in [(1, 1000, 16, 16, 128), (1, 10, 16, 16, 128), (2, 3, 128, 128, 128), (1, 1, 2, 2, 1)]:
        for maps in (1, 2, 4):
            for dtype in TOLERANCE:
                (programs,), options = operations._configuration(shape, dtype, maps=maps)
                assert programs * options["BC"] >= shape[0] * shape[1] * shape[4]
                assert 4 * options["BW"] * options["BC"] * dtype.itemsize <= 32 * 1024


@pytest.mark.parametrize("shape", [(1, 2, 6, 6, 3), (1, 1, 40, 38, 3)])
def test_variance_survives_a_large_mean(shape: tuple[int, ...], kernel_device: torch.device) -> None:
    p = Problem(shape, torch.float32, kernel_device)
    p.z += 1000  # the mean square is a million times the variance: E z^2 - (E z)^2 would have no digit left
    _, stats = block.forward(p.z, p.g, p.b)
    _, expected = block.naive_forward(p.z.double(), p.g.double(), p.b.double())
    assert relative_error(stats[:, :, 1], expected[:, :, 1]) < 2e-5  # worst seen: 2.5e-6


def test_a_nan_shows_and_stays_in_its_plane(kernel_device: torch.device) -> None:
    p = Problem((2, 2, 5, 4, 3), torch.float32, kernel_device)
    p.z[1, 0, 4, 3, 2] = float("nan")
    found = run(p, "", accumulate=False)
    for name in ("o", "od", "plain gz", "gz", "gzd"):
        bad = found[name].isnan().flatten(2, 3).any(2)  # [K, B, C]
        assert bad[1, 0].tolist() == [False, False, True], name
        assert int(bad.sum()) == 1, name
    assert found["g and b"].isnan().nonzero().tolist() == [[1, 7]]  # g; b sums what the ReLU passes


def test_same_inputs_same_bits(kernel_device: torch.device) -> None:
    first, again = (run(Problem(SHAPES[1], torch.float32, kernel_device), "", False) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("accumulate", [False, True])
def test_images_are_summed_into_three_places(accumulate: bool, kernel_device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    parts = torch.randn(2, 150, 70, generator=generator).to(kernel_device)
    out = torch.full((2, 90), GUARD, device=kernel_device)
    block.sum_images(parts, out, (40, 37), (2, 30), (80, 3), accumulate=accumulate)
    total = parts.double().sum(1) + (GUARD if accumulate else 0)
    expected = torch.full((2, 90), GUARD, dtype=torch.float64, device=kernel_device)
    for at, begin, length in ((40, 0, 37), (2, 37, 30), (80, 67, 3)):
        expected[:, at : at + length] = total[:, begin : begin + length]
    assert relative_error(out, expected) < 1e-7
    assert bool((out[:, 32:40] == GUARD).all())


def test_launches_are_counted_without_running() -> None:
    p = Problem((1, 10, 16, 16, 128), torch.float32, torch.device("cpu"))
    with dry_run() as count:
        run(p, "", accumulate=False)
    names = [name for name, _ in count.launches]
    expected = ["forward", "tangent", "backward", "sum_images", "adjoint", "sum_images"]
    assert names == [f"{name}_kernel" for name in expected]
    whole, pooled, plane = p.z.numel() * 4, p.go.numel() * 4, 10 * 128 * 4
    assert count.launches[0][1].bytes == whole + pooled + 2 * plane
    assert count.launches[4][1].bytes == 4 * whole + 2 * pooled + 6 * plane


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "z", p.z.transpose(2, 3)),
        lambda p: setattr(p, "z", p.z.half()),
        lambda p: setattr(p, "z", p.z[:, :, :1].contiguous()),
        lambda p: setattr(p, "g", p.g[:, :2]),
        lambda p: setattr(p, "b", p.b.double()),
    ],
)
def test_wrong_inputs_are_refused(change: Callable[[Problem], None]) -> None:
    p = Problem((2, 2, 4, 6, 3), torch.float32, torch.device("cpu"))
    change(p)
    with pytest.raises(InputError):
        block.forward(p.z, p.g, p.b)


def test_wrong_gradients_are_refused() -> None:
    p = Problem((2, 2, 4, 6, 3), torch.float32, torch.device("cpu"))
    stats = p.z.new_zeros(2, 2, 2, 3)
    with pytest.raises(InputError, match="contiguous"):
        block.backward(p.z, stats, p.g, p.b, p.god[:, :1], p.out, 0, 3)
    with pytest.raises(InputError, match="flat gradients"):
        block.backward(p.z, stats, p.g, p.b, p.god, p.out[:1], 0, 3)
    with pytest.raises(InputError, match=r"\[2, 2, 4, 3\]"):  # statistics of the forward pass, not of the tangent
        block.adjoint(p.z, p.zd, stats, p.g, p.b, p.gd, p.bd, p.go, p.god, p.out, 0, 3)
