"""Cross entropy (on a GPU or in Triton's interpreter) against their twins and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels import head
from pad_fast.kernels.launch import counting, dry_run

from ..support.comparison import describe_difference, relative_error
from ..support.small import drawn

pytestmark = [
    pytest.mark.usefixtures("poisoned", "on_kernel_device"),
    # NumPy under the interpreter says so about rows behind the last image, which hold no number.
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning"),
]

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}  # worst seen 2.6e-6 (u' of two classes) and 2e-14 (phi)
DTYPES = [torch.float32, torch.float64]
LABELS = ["hard", "soft", "hard per row", "soft per row", "probabilities", "probabilities per row"]
SHAPES = [(1, 1, 2), (3, 7, 10), (1, 100, 10), (2, 150, 17), (2, 3, 1000), (3, 2, 2500)]  # K, B, classes


def labels_of(kind: str, trajectories: int, images: int, classes: int) -> Tensor:
    shape = (trajectories, images) if "per row" in kind else (images,)
    if "hard" in kind:
        return (100 * drawn(3, *shape)).long() % classes
    labels = 2 * drawn(4, *shape, classes)
    # Some are zero, and rows do not add up to 1.
    return labels.clamp_min(0) if "probabilities" in kind else labels


def named(kind: str) -> dict[str, Any]:
    return {"labels_are": "probabilities"} if "probabilities" in kind else {}


def assert_close(actual: Tensor | None, expected: Tensor | None) -> None:
    if expected is None or actual is None:
        assert actual is None and expected is None
        return
    assert actual.dtype == expected.dtype
    assert relative_error(actual, expected) < TOLERANCE[expected.dtype], describe_difference(actual, expected)


def cast(labels: Tensor, dtype: torch.dtype) -> Tensor:
    return labels.to(dtype) if labels.is_floating_point() else labels


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_adjoint(shape: tuple[int, int, int], kind: str, dtype: torch.dtype) -> None:
    u, ud = (3 * drawn(1, *shape)).to(dtype), drawn(2, *shape).to(dtype)
    labels, how = cast(labels_of(kind, *shape), dtype), named(kind)
    batch = shape[1] + 3
    for actual, expected in zip(
        head.loss(u, labels, batch, **how), head.naive_loss(u, labels, batch, **how), strict=True
    ):
        assert_close(actual, expected)
    mine, twin = head.adjoint(u, ud, labels, batch, **how), head.naive_adjoint(u, ud, labels, batch, **how)
    for actual, expected in zip(mine, twin, strict=True):
        assert_close(actual, expected)
    without = head.adjoint(u, ud, labels, batch, wants_labels=False, **how)
    assert without[3] is None
    for actual, expected in zip(without[:3], mine[:3], strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ["hard", "soft", "soft per row", "probabilities"])
def test_logits_in_parts_are_added_up(kind: str, dtype: torch.dtype) -> None:
    u, ud = drawn(1, 3, 2, 7, 10).to(dtype), drawn(2, 3, 2, 7, 10).to(dtype)
    labels, how = cast(labels_of(kind, 2, 7, 10), dtype), named(kind)
    for actual, expected in zip(
        head.loss(u, labels, 9, **how), head.naive_loss(u.sum(0), labels, 9, **how), strict=True
    ):
        assert_close(actual, expected)
    twin = head.naive_adjoint(u.sum(0), ud.sum(0), labels, 9, **how)
    for results in (head.adjoint(u, ud, labels, 9, **how), head.naive_adjoint(u, ud, labels, 9, **how)):
        for actual, expected in zip(results, twin, strict=True):
            assert_close(actual, expected)


def test_large_logits_do_not_overflow() -> None:
    u = torch.tensor([[[1000.0, 999.0, -1000.0], [-800.0, -801.0, -800.5]]])
    labels = torch.tensor([[500.0, 502.0, -500.0], [-900.0, -905.0, -902.0]])
    for actual, expected in zip(head.loss(u, labels, 2), head.naive_loss(u, labels, 2), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("classes", [3, 4100])
def test_impossible_classes(classes: int) -> None:
    """Logits of -inf have probability 0, also where they fill a whole block of many classes."""
    u, labels = drawn(1, 2, 3, classes), drawn(2, 3, classes)
    u[0, 1, : 2 * classes // 3] = -torch.inf
    u[1, 2, 0] = -torch.inf
    labels[1, : 2 * classes // 3] = labels[2, 0] = -torch.inf
    for actual, expected in zip(head.loss(u, labels, 3), head.naive_loss(u, labels, 3), strict=True):
        assert_close(actual, expected)
    for actual, expected in zip(
        head.adjoint(u, drawn(3, *u.shape), labels, 3),
        head.naive_adjoint(u, drawn(3, *u.shape), labels, 3),
        strict=True,
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["u", "ud", "labels"])
@pytest.mark.parametrize("classes", [5, 3000])
def test_a_bad_number_shows(bad: float, where: str, classes: int) -> None:
    u, ud, labels = drawn(1, 2, 3, classes), drawn(2, 2, 3, classes), drawn(3, 3, classes)
    {"u": u[1], "ud": ud[1], "labels": labels}[where][2, 1] = bad
    if where != "ud":
        losses, gud = head.loss(u, labels, 3)
        assert bool(losses[1].isnan()) and bool(gud[1, 2].isnan().all()) and bool(gud[:, :2].isfinite().all())
    phi, gu, gud, gy = head.adjoint(u, ud, labels, 3)
    assert gy is not None
    assert not bool(phi[1].isfinite())
    assert where == "labels" or bool(phi[0].isfinite())
    assert bool(gu[:, :2].isfinite().all()) and bool(gy[:2].isfinite().all())
    if where != "u":
        assert not bool(gy[2].isfinite().any())
    if where != "labels":
        assert not bool(gu[1, 2].isfinite().any())


@pytest.mark.parametrize("label", [-100, -1, 5, 2**40])
def test_no_class_is_ignored(label: int) -> None:
    u, ud = drawn(1, 2, 3, 5), drawn(2, 2, 3, 5)
    labels = torch.tensor([[0, 4, 1], [2, label, 3]])
    for losses, gud in (head.loss(u, labels, 3), head.naive_loss(u, labels, 3)):
        assert losses.isnan().tolist() == [False, True]
        assert gud.isnan().all(-1).tolist() == gud.isnan().any(-1).tolist() == [[False] * 3, [False, True, False]]
    phi, _, gud, _ = head.adjoint(u, ud, labels, 3)
    assert phi.isnan().tolist() == [False, True]
    assert gud.isnan().any(-1).tolist() == [[False] * 3, [False, True, False]]


def test_parts_of_a_batch_add_up() -> None:
    u, ud, labels = drawn(1, 2, 9, 5), drawn(2, 2, 9, 5), drawn(3, 9, 5)
    whole = head.adjoint(u, ud, labels, 9)
    parts = [head.adjoint(u[:, cut], ud[:, cut], labels[cut], 9) for cut in (slice(0, 4), slice(4, 9))]
    assert relative_error(parts[0][0] + parts[1][0], whole[0]) < 1e-14
    for index in (1, 2):
        assert relative_error(torch.cat([part[index] for part in parts], 1), whole[index]) < 1e-14
    assert whole[3] is not None and relative_error(torch.cat([part[3] for part in parts]), whole[3]) < 1e-14


def test_launches() -> None:
    u, labels = drawn(1, 2, 64, 10).float(), drawn(2, 64, 10).float()
    with dry_run() as count:
        losses, gud = head.loss(u, labels, 64)
        head.adjoint(u, u, labels, 64)
    assert [name for name, _ in count.launches] == ["_loss_kernel", "_adjoint_kernel"]
    assert bool(losses.isnan().all()) and bool(gud.isnan().all())
    with counting() as count:
        head.loss(u.repeat(1, 2, 1), labels.repeat(2, 1), 128)
    assert [name for name, _ in count.launches] == ["_loss_kernel", "_finish_kernel"]


def test_labels_that_do_not_fit_are_refused() -> None:
    u = torch.zeros(2, 3, 5)
    for labels in (torch.zeros(3, 4), torch.zeros(3, 5).double(), torch.zeros(3).int(), torch.zeros(4).long()):
        with pytest.raises(InputError, match=r"labels are torch\.\w+ \[.*pass torch"):
            head.loss(u, labels, 3)
