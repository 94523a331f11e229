"""The classifier (on a GPU or in Triton's interpreter) against its twins, and the whole head against autograd."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.engines.base import cross_entropy
from pad_fast.errors import InputError
from pad_fast.kernels import classifier, head
from pad_fast.kernels.launch import counting

from ..support.comparison import describe_difference, relative_error
from ..support.small import drawn

pytestmark = [
    pytest.mark.usefixtures("poisoned", "on_kernel_device"),
    # NumPy under the interpreter says so about rows behind the last image, which hold no number.
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning"),
]

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}  # worst seen 4e-7 and 5e-16
DTYPES = [torch.float32, torch.float64]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.is_contiguous()
    assert relative_error(actual, expected) < TOLERANCE[expected.dtype], describe_difference(actual, expected)


@dataclass(frozen=True)
class Problem:
    """A classifier somewhere in a flat vector, features and their tangent."""

    theta: Tensor
    v: Tensor
    f: Tensor
    fd: Tensor
    classes: int
    offset: int

    @classmethod
    def make(cls, trajectories: int, images: int, shape: tuple[int, int, int], classes: int) -> Problem:
        height, width, channels = shape
        length = 11 + classes * (height * width * channels + 1) + 5
        features = (trajectories, images, *shape)
        return cls(
            drawn(1, trajectories, length),
            drawn(2, trajectories, length),
            drawn(3, *features),
            drawn(4, *features),
            classes,
            11,
        )

    def to(self, dtype: torch.dtype) -> Problem:
        theta, v, f, fd = (x.to(dtype) for x in (self.theta, self.v, self.f, self.fd))
        return Problem(theta, v, f, fd, self.classes, self.offset)

    def reference(self, theta: Tensor, f: Tensor) -> Tensor:
        """Logits as torch defines them, from features in channels-first order."""
        flat = f.permute(0, 1, 4, 2, 3).flatten(2)
        end = self.offset + self.classes * flat.shape[2]
        w = theta[:, self.offset : end].unflatten(1, (self.classes, -1))
        return torch.einsum("kbf,kof->kbo", flat, w) + theta[:, None, end : end + self.classes]


FEATURES = [(1, 5, (1, 1, 6), 3), (3, 5, (2, 3, 7), 20), (1, 3, (4, 4, 13), 10), (2, 66, (1, 2, 17), 35)]


@pytest.mark.parametrize("precision", ["tf32", "bf16", "ieee", "float64"])
@pytest.mark.parametrize("sizes", FEATURES, ids=str)
def test_products(sizes: tuple[int, int, tuple[int, int, int], int], precision: str) -> None:
    """Exact to float32 in every precision."""
    problem = Problem.make(*sizes).to(torch.float64 if precision == "float64" else torch.float32)
    theta, v, f, fd, at = problem.theta, problem.v, problem.f, problem.fd, problem.offset
    gu, gud = (drawn(seed, *f.shape[:2], problem.classes).to(f.dtype) for seed in (5, 6))
    by = {"precision": "ieee" if precision == "float64" else precision}
    u = classifier.logits(f, theta, at, problem.classes, **by)
    assert_close(u.sum(0), classifier.naive_logits(f, theta, at, problem.classes, **by)[0])
    mine = classifier.tangent_logits(f, fd, theta, v, at, problem.classes, **by)
    twin = classifier.naive_tangent_logits(f, fd, theta, v, at, problem.classes, **by)
    for actual, expected in zip(mine, twin, strict=True):
        assert_close(actual.sum(0), expected[0])

    written = slice(at, at + problem.classes * (f[0, 0].numel() + 1))
    for accumulate in (False, True):
        before = theta.clone() if accumulate else torch.full_like(theta, torch.nan)
        for operation, operands in (("backward", (gud, f, theta)), ("backward_dual", (gu, gud, f, fd, theta, v))):
            mine_out, twin_out = before.clone(), before.clone()
            mine = getattr(classifier, operation)(*operands, mine_out, at, accumulate=accumulate, **by)
            twin = getattr(classifier, f"naive_{operation}")(*operands, twin_out, at, accumulate=accumulate, **by)
            pairs = [(mine, twin)] if operation == "backward" else zip(mine, twin, strict=True)
            for actual, expected in pairs:
                assert_close(actual, expected)
            assert_close(mine_out[:, written].contiguous(), twin_out[:, written].contiguous())
            mine_out[:, written] = before[:, written]
            assert torch.equal(mine_out.nan_to_num(7), before.nan_to_num(7)), "something else was touched"
    for actual, expected in zip(
        classifier.backward_dual(gu, gud, f, fd, theta, v, None, at, **by),
        classifier.naive_backward_dual(gu, gud, f, fd, theta, v, None, at, **by),
        strict=True,
    ):
        assert_close(actual, expected)


def test_sums_are_cut_into_parts_where_there_are_few() -> None:
    f, theta = torch.ones(1, 10, 4, 4, 128), torch.ones(1, 30_000)
    with counting() as count:
        assert len(classifier.logits(f, theta, 7, 10, precision="tf32")) == 8
    assert [name for name, _ in count.launches] == ["_logits_kernel"]
    assert count.flops == 2 * 10 * 10 * 2048
    assert classifier.parts_of(torch.empty(1, 5000, 4, 4, 128), 100, "tf32") == 1
    assert classifier.parts_of(torch.empty(1, 10, 1, 1, 8), 10, "ieee") == 1


@pytest.mark.parametrize("kernels", [False, True], ids=["twins", "kernels"])
@pytest.mark.parametrize("kind", ["hard", "soft", "hard per row", "soft per row"])
@pytest.mark.parametrize("sizes", FEATURES[:3], ids=str)
def test_a_whole_head_against_autograd(
    sizes: tuple[int, int, tuple[int, int, int], int], kind: str, kernels: bool
) -> None:
    problem = Problem.make(*sizes)
    op = {
        name: getattr(module, name if kernels else f"naive_{name}")
        for module in (classifier, head)
        for name in dir(module)
        if hasattr(module, f"naive_{name}")
    }
    by = {"precision": "ieee"}
    theta, v, f, fd = problem.theta, problem.v, problem.f, problem.fd
    trajectories, images = f.shape[:2]
    shape = (trajectories, images) if "per row" in kind else (images,)
    hard = (100 * drawn(7, *shape)).long() % problem.classes
    labels = hard if "hard" in kind else 2 * drawn(8, *shape, problem.classes)

    leaves = [x.clone().requires_grad_() for x in (theta, f, fd)]
    y = labels.clone().requires_grad_(labels.is_floating_point())
    u = problem.reference(leaves[0], leaves[1])
    rows = y if "per row" in kind else [y] * trajectories
    losses = torch.stack([cross_entropy(logits, row) for logits, row in zip(u, rows, strict=True)])
    g_theta, g_f = torch.autograd.grad(losses.sum(), leaves[:2], create_graph=True)
    phis = (g_theta * v).sum(1) + (g_f * leaves[2]).sum((1, 2, 3, 4))
    wanted = torch.autograd.grad(phis.sum(), leaves + [y] * y.requires_grad)

    at, classes = problem.offset, problem.classes
    mine_losses, gud = op["loss"](op["logits"](f, theta, at, classes, **by), labels, images)
    plain = torch.zeros_like(theta)
    assert relative_error(op["backward"](gud, f, theta, plain, at, **by), g_f) < 1e-12
    assert relative_error(mine_losses, losses) < 1e-12
    assert relative_error(plain, g_theta) < 1e-12

    u, ud = op["tangent_logits"](f, fd, theta, v, at, classes, **by)
    phi, gu, gud, gy = op["adjoint"](u, ud, labels, images)
    dual = torch.zeros_like(theta)
    gf, gfd = op["backward_dual"](gu, gud, f, fd, theta, v, dual, at, **by)
    for actual, expected in zip((phi, dual, gf, gfd), (phis, *wanted[:3]), strict=True):
        assert relative_error(actual, expected) < 1e-12
    assert (gy is None) == ("hard" in kind)
    if gy is not None:
        assert relative_error(gy, wanted[3]) < 1e-12


def test_what_does_not_fit_is_refused() -> None:
    f, theta = torch.ones(2, 3, 2, 2, 4), torch.ones(2, 100)
    with pytest.raises(InputError, match="flat vectors are .2, at least 90."):
        classifier.logits(f, theta[:, :89], 5, 5, precision="tf32")
    with pytest.raises(InputError, match="precision is 'tf32' for torch.float64"):
        classifier.logits(f.double(), theta.double(), 5, 5, precision="tf32")
    with pytest.raises(InputError, match="contiguous and alike"):
        classifier.tangent_logits(f, f.transpose(2, 4), theta, theta, 5, 5, precision="tf32")
