"""Switching a script of one's own to pad_fast: the same numbers, and native engines for networks that are not ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pad_fast import ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task, record_backends, select
from pad_fast.errors import BackendError, InputError
from pad_fast.models import ConvNet, ConvNetConfig, FlatNetwork
from pad_fast.runtime import extension

from ..support.comparison import describe_difference, relative_error
from ..support.convnets import Reparametrised

NATIVE = "cpu" if extension.available() else "autograd"
SHAPE = (2, 9, 9)


class TheirConvNet(nn.Module):
    """A ConvNet as scripts write it: blocks in a Sequential, in-place ReLU, its own names."""

    def __init__(self, *, norm: str = "group", eps: float = 1e-5, pool: int = 2, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((2, 6), (6, 6)):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))
            if norm == "group":
                layers.append(nn.GroupNorm(outputs, outputs, eps=eps))
            elif norm == "instance":
                layers.append(nn.InstanceNorm2d(outputs, affine=True))
            else:
                layers.append(nn.BatchNorm2d(outputs))
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(pool, 2)]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(6 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return self.last(out.view(len(out), -1))


class Doubled(TheirConvNet):
    """The modules of an instance-norm ConvNet, and another function."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Functional(nn.Module):
    """No module for ReLU and pooling, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(6, 6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(6, 6)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        return self.fc(functional.avg_pool2d(functional.relu(self.norm2(self.conv2(x))), 2).flatten(1))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net_of(module: type[nn.Module] = TheirConvNet, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    net = module(**options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


class DiffAugment:
    """Like published ones: draws from torch's global generator, seeded by a counter that it advances."""

    def __init__(self) -> None:
        self.latestseed = 0

    def __call__(self, x: Tensor) -> Tensor:
        torch.manual_seed(self.latestseed)
        self.latestseed += 1
        brightness = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) - 0.5
        flipped = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
        return flipped + brightness


class Script:
    """A small trajectory-matching script: five iterations on images, soft labels and the learning rate."""

    steps, batch = 6, 5

    def __init__(self) -> None:
        self.student = Reparametrised(net_of())
        self.expert = [self.student.flat_param.detach().clone()]
        for snapshot in range(4):
            self.expert.append(self.expert[-1] + 0.05 * normal(len(self.expert[0]), seed=snapshot))
        self.images = normal(12, *SHAPE, seed=10).requires_grad_()
        self.labels = normal(12, 4, seed=11).requires_grad_()
        self.lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        self.optimizers = [
            torch.optim.SGD([self.images], lr=300.0, momentum=0.5),
            torch.optim.SGD([self.labels], lr=20.0, momentum=0.9),
            torch.optim.SGD([self.lr], lr=1e-3, momentum=0.5),
        ]
        self.draws = torch.Generator().manual_seed(7)
        self.augment = DiffAugment()
        self.losses: list[float] = []

    def batches(self) -> list[Tensor]:
        chunks: list[Tensor] = []
        while len(chunks) < self.steps:
            chunks += torch.randperm(len(self.images), generator=self.draws).split(self.batch)
        return chunks[: self.steps]

    def run(self, loss_of: Any) -> Script:
        for iteration in range(5):
            start = int(torch.randint(0, 3, (), generator=self.draws))
            loss = loss_of(self, self.expert[start], self.expert[start + 2], self.batches(), 100 * iteration)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.losses.append(float(loss.detach()))
        return self


def before(script: Script, start: Tensor, target: Tensor, batches: list[Tensor], seed: int) -> Tensor:
    """The inner loop as such scripts have it."""
    script.augment.latestseed = seed
    theta = start.clone().requires_grad_()
    for batch in batches:
        x = script.augment(script.images[batch])
        logits = script.student(x, flat_param=theta)
        loss = functional.cross_entropy(logits, script.labels[batch].softmax(-1))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - script.lr * gradient
    return functional.mse_loss(theta, target, reduction="sum") / functional.mse_loss(start, target, reduction="sum")


def after(script: Script, start: Tensor, target: Tensor, batches: list[Tensor], seed: int) -> Tensor:
    """The call that replaces it."""

    def augment(x: Tensor, step: int) -> Tensor:
        script.augment.latestseed = seed + step
        return script.augment(x)

    return trajectory_matching_loss(
        script.student, start, target, script.images, script.labels, script.lr, batches=batches, augment=augment
    )


def test_the_example_of_the_page_runs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "drop-in.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    assert all(bool(names[name].grad.ne(0).any()) for name in ("images", "label_logits", "syn_lr"))


def test_a_script_before_and_after():
    old = Script().run(before)
    with record_backends() as used:
        new = Script().run(after)
    assert used == [NATIVE] * 5
    assert len(set(old.losses)) == 5 and old.losses[0] != 1
    assert new.losses == pytest.approx(old.losses, rel=1e-9)
    untouched = Script()
    for name in ("images", "labels", "lr"):
        got, expected = getattr(new, name).detach(), getattr(old, name).detach()
        moved = expected - getattr(untouched, name).detach()
        assert float(moved.norm()) > 1e-4 * float(expected.norm()), f"{name} was not updated: the test proves nothing"
        assert relative_error(got - getattr(untouched, name), moved) < 1e-8, describe_difference(got, expected)


@pytest.mark.parametrize(
    "module",
    [
        lambda: net_of(),
        lambda: net_of(norm="instance"),
        lambda: net_of(Functional),
        lambda: Reparametrised(net_of()),
        lambda: Reparametrised(net_of(Functional)),
        lambda: nn.DataParallel(net_of()),
        lambda: nn.DataParallel(Reparametrised(net_of())),
        lambda: net_of().eval(),
    ],
    ids=["group", "instance", "functional", "wrapper", "functional in wrapper", "parallel", "parallel wrapper", "eval"],
)
def test_their_convnet_is_recognised(module):
    network = FlatNetwork(module(), image_shape=SHAPE)
    config = network.convnet
    assert isinstance(config, ConvNetConfig), config
    assert (config.channels, config.classes, config.width, config.depth, config.resolution) == (2, 4, 6, 2, 9)
    if not network.takes_flat_param:
        assert network.layer_starts() == (0, 126, 468)
    else:
        assert network.layer_starts() == FlatNetwork(ConvNet.meta(config)).layer_starts()


def test_it_takes_the_native_engine_and_gives_their_gradient():
    images, start = normal(7, *SHAPE, seed=1), FlatNetwork(net_of()).initial()
    for model in (net_of(), Reparametrised(net_of())):
        grads = {}
        for backend in (NATIVE, "autograd"):
            leaf = images.clone().requires_grad_()
            with record_backends() as used:
                loss = trajectory_matching_loss(
                    model,
                    start,
                    start + 0.1 * normal(len(start), seed=2),
                    leaf,
                    torch.tensor([0, 3, 1, 2, 2, 0, 1]),
                    0.3,
                    batches=[torch.tensor([0, 2, 4]), torch.arange(7)],
                    mask=ParameterMask.layers(1),
                    backend=backend,
                )
            assert used == [backend]
            (grads[backend],) = torch.autograd.grad(loss, leaf)
        assert relative_error(grads[NATIVE], grads["autograd"]) < 1e-9


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: net_of(eps=1e-3), "eps"),
        (lambda: net_of(norm="batch"), "BatchNorm2d"),
        (lambda: net_of(bias=False), "no bias"),
        (lambda: net_of(pool=3), "forward fails on three images"),
        (lambda: net_of(Doubled), "something else"),
        (lambda: Reparametrised(net_of(Doubled)), "something else"),
        (lambda: nn.Sequential(net_of(), nn.Dropout(0.1)), "Dropout"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(162, 4)).double(), "blocks of a convolution"),
    ],
    ids=["eps", "batch norm", "no bias", "pool", "doubled", "doubled wrapper", "dropout", "mlp"],
)
def test_what_computes_something_else_is_not(module, reason):
    network = FlatNetwork(module(), image_shape=SHAPE)
    assert isinstance(network.convnet, str)
    assert re.search(reason, network.convnet), network.convnet


def test_the_native_engine_refuses_it_by_name():
    start = FlatNetwork(net_of(Doubled)).initial()
    with pytest.raises(BackendError, match="Doubled is not one: .* something else"):
        trajectory_matching_loss(
            net_of(Doubled), start, start + 1, normal(3, *SHAPE), torch.arange(3), 0.1, batches=[torch.arange(3)],
            backend="cpu",
        )  # fmt: skip


def test_a_layer_exchanged_later_is_noticed():
    net = net_of()
    assert isinstance(FlatNetwork(net, image_shape=SHAPE).convnet, ConvNetConfig)
    net.body[1] = nn.GroupNorm(2, 6).double()
    assert "GroupNorm(2, 6" in str(FlatNetwork(net, image_shape=SHAPE).convnet)


def test_recognising_leaves_the_callers_generator_and_network_alone():
    net = Reparametrised(net_of())
    torch.manual_seed(5)
    expected = torch.rand(3)
    theta = net.flat_param.detach().clone()
    torch.manual_seed(5)
    assert isinstance(FlatNetwork(net, image_shape=SHAPE).convnet, ConvNetConfig)
    assert torch.equal(torch.rand(3), expected) and torch.equal(net.flat_param, theta) and net.flat_param.grad is None


def problem() -> dict[str, Any]:
    start = FlatNetwork(net_of()).initial()
    return {
        "theta_start": start,
        "theta_target": start + 0.1 * normal(len(start), seed=4),
        "images": normal(5, *SHAPE, seed=5),
        "labels": normal(5, 4, seed=6),
        "lr": torch.tensor(0.2, dtype=torch.float64),
        "batches": [torch.arange(5), torch.tensor([3, 1])],
    }


def test_images_need_not_be_leaves():
    given = problem()
    latent = normal(5, 2, 3, 3, seed=8).requires_grad_()
    images = functional.interpolate(latent, size=9, mode="bilinear", align_corners=True)
    given["images"] = images
    (got,) = torch.autograd.grad(trajectory_matching_loss(net_of(), **given), latent, retain_graph=True)
    (expected,) = torch.autograd.grad(trajectory_matching_loss(net_of(), **given, gradient="unroll"), latent)
    assert relative_error(got, expected) < 1e-9


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_recording_it_fails_clearly(guard):
    given = problem()
    with guard():
        measured = trajectory_matching_loss(net_of(), **given)  # nothing to pull back: a measurement
    assert float(measured) == pytest.approx(float(trajectory_matching_loss(net_of(), **given)))
    given["images"].requires_grad_()
    with guard(), pytest.raises(InputError, match=r"images requires a gradient.*torch.no_grad.*detached"):
        trajectory_matching_loss(net_of(), **given)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x, step: x[:, :, ::2, ::2] if step else x, r"takes images \[B, 2, 9, 9\], got \[2, 2, 5, 5\]"),
        (lambda x, step: x[:2], r"labels are \[5, 4\] for images \[2, 2, 9, 9\]"),
        (lambda x, step: x.float(), "images of torch.float32"),
    ],
    ids=["size", "count", "dtype"],
)
@pytest.mark.skipif(NATIVE != "cpu", reason="the compiled extension is missing")
def test_what_an_augmentation_returns_is_checked_before_a_pointer_crosses(augment, message):
    with pytest.raises(InputError, match=message):
        trajectory_matching_loss(net_of(), **problem(), augment=augment, backend="cpu")


@pytest.mark.skipif(NATIVE != "cpu", reason="the compiled extension is missing")
def test_a_class_beyond_the_network_is_an_error():
    given = {**problem(), "labels": torch.tensor([0, 1, 2, 3, 4])}
    with pytest.raises(InputError, match="hard labels run from 0 to 4; classes of the network are 0 to 3"):
        trajectory_matching_loss(net_of(), **given, backend="cpu")
    network = FlatNetwork(net_of(), image_shape=SHAPE)
    task = Task(network, torch.device("cpu"), torch.float64)
    theta, images = network.initial().double(), normal(5, *SHAPE)
    with pytest.raises(IndexError, match="label 4 of image 4 is not a class of a network of 4 classes"):
        select("cpu", task).loss_and_grad(task, theta, images, given["labels"])


@pytest.mark.skipif(NATIVE != "cpu", reason="the compiled extension is missing")
@pytest.mark.parametrize("theta", [torch.zeros(7, dtype=torch.float64), torch.zeros(568)], ids=["count", "dtype"])
def test_parameters_are_checked_before_a_pointer_crosses(theta):
    network = FlatNetwork(net_of(), image_shape=SHAPE)
    task = Task(network, torch.device("cpu"), torch.float64)
    with pytest.raises(InputError, match=rf"parameters are {theta.dtype} \[{len(theta)}\].*the network has 568"):
        select("cpu", task).forward(task, theta, normal(2, *SHAPE))
