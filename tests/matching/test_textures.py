"""Canvases larger than the network's input, and several samples of an image in one step, as in MTT's texture mode."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pad_fast
from pad_fast import ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.errors import BackendError, InputError
from pad_fast.models import FlatNetwork

from ..support.comparison import describe_difference, relative_error
from .test_drop_in import NATIVE, Reparametrised, net_of, normal

SIDE, CANVAS, SAMPLES = 9, 2, 3
COUNT, BATCH, STEPS = 8, 3, 6


def ours() -> nn.Module:
    torch.manual_seed(3)
    return ConvNet(channels=2, classes=4, width=6, depth=2, resolution=SIDE).double()


NETWORKS = {"ours": ours, "theirs": net_of, "wrapper": lambda: Reparametrised(net_of())}


def pieces(canvases: Tensor, side: int = SIDE) -> Tensor:
    """One random piece of every canvas, whose edges meet."""
    cut = []
    for canvas in canvases:
        down, right = torch.randint(canvas.shape[1], (1,)), torch.randint(canvas.shape[2], (1,))
        cut.append(canvas.roll((int(down), int(right)), (1, 2))[:, :side, :side])
    return torch.stack(cut)


def repeatable(canvases: Tensor, step: int) -> Tensor:
    """The same pieces for every trajectory: recorded as a whole, the loop draws anew for each."""
    torch.manual_seed(100 + step)
    return pieces(canvases)


class TextureScript:
    """A script with MTT's texture loop: five iterations on canvases and the learning rate, hard labels or soft ones."""

    def __init__(self, *, soft: bool) -> None:
        self.student = Reparametrised(net_of())
        self.expert = [self.student.flat_param.detach().clone()]
        for snapshot in range(4):
            self.expert.append(self.expert[-1] + 0.05 * normal(len(self.expert[0]), seed=snapshot))
        self.canvases = normal(COUNT, 2, SIDE * CANVAS, SIDE * CANVAS, seed=10).requires_grad_()
        self.labels = normal(COUNT, 4, seed=11).requires_grad_() if soft else torch.arange(COUNT) % 4
        self.lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        learned = {"canvases": 300.0, "lr": 1e-3, **({"labels": 20.0} if soft else {})}
        self.learned = tuple(learned)
        self.optimizers = [torch.optim.SGD([getattr(self, k)], lr=rate, momentum=0.5) for k, rate in learned.items()]
        self.losses: list[float] = []

    def run(self, loss_of: Any) -> TextureScript:
        torch.manual_seed(21)
        for iteration in range(5):
            loss = loss_of(self, self.expert[iteration % 3], self.expert[iteration % 3 + 2])
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.losses.append(float(loss.detach()))
        self.next_draw = torch.rand(4)
        return self


def before(script: TextureScript, start: Tensor, target: Tensor) -> Tensor:
    """The inner loop as such scripts have it: all canvases of the batch, then all of them again."""
    theta = start.clone().requires_grad_()
    chunks: list[Tensor] = []
    for _ in range(STEPS):
        if not chunks:
            chunks = list(torch.randperm(COUNT).split(BATCH))
        chunk = chunks.pop()
        x = torch.cat([pieces(script.canvases[chunk]) for _ in range(SAMPLES)])
        y = torch.cat([script.labels[chunk]] * SAMPLES)
        y = y.softmax(-1) if y.is_floating_point() else y
        loss = functional.cross_entropy(script.student(x, flat_param=theta), y)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - script.lr * gradient
    return functional.mse_loss(theta, target, reduction="sum") / functional.mse_loss(start, target, reduction="sum")


def after(script: TextureScript, start: Tensor, target: Tensor) -> Tensor:
    """The lines of the page that replace it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "drop-in.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```text\n(.*?)^```", page.partition("**Textures**")[2], re.DOTALL | re.MULTILINE)[:1]
    names = {
        **{"torch": torch, "pad_fast": pad_fast, "student": script.student, "start": start, "target": target},
        **{"canvases": script.canvases, "label_syn": script.labels, "syn_lr": script.lr, "im_size": (SIDE, SIDE)},
        "args": SimpleNamespace(batch_syn=BATCH, syn_steps=STEPS, canvas_samples=SAMPLES),
    }
    exec(code, names)
    return names["loss"]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_script_before_and_after(soft):
    old = TextureScript(soft=soft).run(before)
    with record_backends() as used:
        new = TextureScript(soft=soft).run(after)
    assert used == [NATIVE] * 5
    assert len(set(old.losses)) == 5
    assert new.losses == pytest.approx(old.losses, rel=1e-12)
    assert torch.equal(new.next_draw, old.next_draw)  # the generator is where the script leaves it
    untouched = TextureScript(soft=soft)
    for name in old.learned:
        got, expected = getattr(new, name).detach(), getattr(old, name).detach()
        moved = expected - getattr(untouched, name).detach()
        assert float(moved.norm()) > 1e-4 * float(expected.norm()), f"{name} was not updated: the test proves nothing"
        assert relative_error(got - getattr(untouched, name), moved) < 1e-10, describe_difference(got, expected)


def problem(*, canvas: int = SIDE * CANVAS, stacked: int = 0) -> dict[str, Any]:
    """Batches in which images occur once, several times, and behind one another or not."""
    start = FlatNetwork(ours()).initial()
    starts = torch.stack([start + 0.1 * normal(len(start), seed=k) for k in range(stacked)]) if stacked else start
    return {
        "theta_start": starts,
        "theta_target": starts + 0.1 * normal(*starts.shape, seed=4),
        "images": normal(5, 2, canvas, canvas, seed=5),
        "labels": normal(5, 4, seed=6),
        "lr": torch.tensor(0.2, dtype=torch.float64),
        "batches": [torch.tensor(batch) for batch in ([0, 1, 4, 0, 1, 4], [3, 3, 3, 1], [2], [4, 0, 4])],
    }


def gradients(model: nn.Module, given: dict[str, Any], **how: Any) -> tuple[Tensor, dict[str, Tensor], list[str]]:
    leaves = {name: given[name].clone().requires_grad_() for name in ("images", "labels", "lr", "theta_start")}
    torch.manual_seed(13)
    with record_backends() as used:
        loss = trajectory_matching_loss(model, **{**given, **leaves, **how})
    weight = torch.tensor([0.7, -1.6], dtype=torch.float64) if loss.dim() else torch.ones((), dtype=torch.float64)
    found = torch.autograd.grad(loss, list(leaves.values()), weight)
    return loss.detach(), dict(zip(leaves, found, strict=True)), used


def compare(model: nn.Module, given: dict[str, Any], backend: str) -> dict[str, Tensor]:
    loss, exact, used = gradients(model, given, backend=backend)
    assert used == [backend]
    truth_loss, truth, _ = gradients(model, given, gradient="unroll")
    assert relative_error(loss, truth_loss) < 1e-12
    for name in truth:
        assert bool(truth[name].ne(0).any()), name
        assert relative_error(exact[name], truth[name]) < 1e-10, describe_difference(exact[name], truth[name])
    return exact


BACKENDS = sorted({NATIVE, "autograd"})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stacked", [0, 2])
@pytest.mark.parametrize("mask", [ParameterMask.none(), ParameterMask.layers(1)], ids=repr)
@pytest.mark.parametrize("network", NETWORKS)
def test_pieces_of_canvases_against_the_oracle(network, mask, stacked, backend):
    given = {**problem(stacked=stacked), "augment": repeatable, "mask": mask}
    exact = compare(NETWORKS[network](), given, backend)
    assert exact["images"].shape == (5, 2, SIDE * CANVAS, SIDE * CANVAS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stacked", [0, 2])
@pytest.mark.parametrize("seen", ["plain", "augmented", "seeded"])
def test_a_repeated_index_counts_as_often_as_it_occurs(backend, stacked, seen):
    augment = {
        "plain": None,
        "augmented": lambda x, step: (
            x + torch.linspace(step, 2, len(x), dtype=x.dtype)[:, None, None, None] * x.flip(3)
        ),
        "seeded": pad_fast.DSA("color_scale_rotate").seeded(3),
    }[seen]
    given = {**problem(canvas=SIDE, stacked=stacked), "augment": augment}
    exact = compare(net_of(), given, backend)
    once = {**given, "batches": [batch.unique() for batch in given["batches"]]}
    _, other, _ = gradients(net_of(), once, backend=backend)
    assert relative_error(exact["images"], other["images"]) > 1e-2  # repeating changes something


def test_what_the_network_sees_decides_where_two_sizes_would_fit():
    """Canvases of 9 and pieces of 8 pixels both leave 2 x 2 features."""
    given = {**problem(canvas=9), "augment": lambda canvases, step: pieces(canvases, side=8)}
    compare(net_of(), given, NATIVE)


@pytest.mark.skipif(NATIVE != "cpu", reason="the compiled extension is missing")
def test_what_does_not_fit_is_refused():
    with pytest.raises(BackendError, match="its classifier reads 24 features, where 2 halvings of 18 px"):
        trajectory_matching_loss(net_of(), **problem(), backend="cpu")
    given = {**problem(canvas=SIDE), "augment": lambda x, step: x[:, :, ::2, ::2]}
    with pytest.raises(BackendError, match="its classifier reads 24 features, where 2 halvings of 5 px"):
        trajectory_matching_loss(net_of(), **given, backend="cpu")
    with pytest.raises(InputError, match=r"images \[B, 2, 9, 9\], got \[6, 2, 18, 18\]"):
        trajectory_matching_loss(ours(), **problem(), backend="cpu")


@pytest.mark.parametrize(("network", "looks"), [("ours", 0), ("theirs", 1), ("wrapper", 1)])
def test_how_often_an_augmentation_is_called(network, looks):
    """Once per step and pass, and once ahead; without a gradient only where it shows what a network of others sees."""
    calls: list[int] = []

    def augment(canvases: Tensor, step: int) -> Tensor:
        calls.append(step)
        return pieces(canvases)

    given = {**problem(), "augment": augment, "labels": torch.arange(5) % 4}

    def called(**how: Any) -> list[int]:
        calls.clear()
        loss = trajectory_matching_loss(NETWORKS[network](), **given, **how)
        if loss.requires_grad:
            loss.backward()
        return list(calls)

    with torch.no_grad():
        assert called(backend=NATIVE) == [0] * looks + [0, 1, 2, 3]
    given["images"] = given["images"].requires_grad_()
    assert called(backend=NATIVE) == [0, 0, 1, 2, 3, 3, 2, 1, 0]
    assert called(gradient="unroll") == [0, 1, 2, 3]
