"""Networks: published sizes and parameter order, the reference's training steps, names and limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pad_fast.errors import InputError
from pad_fast.models import ConvNet, network, network_names
from pad_fast.models.convnet import default_depth
from pad_fast.models.spec import NetworkSpec
from pad_fast.training.optimizers import SGD
from pad_fast.training.trainer import Trainer

from ..support.golden import CASES, network_of

Golden = Callable[[str], dict[str, np.ndarray]]

RESOLUTIONS = (8, 16, 28, 32, 64, 128)
ONE_PER_FAMILY = ("ConvNet", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18")
WIDE = {"ConvNetW512", "ConvNetW1024"}
SMALLEST = {"LeNet": 16, "AlexNet": 8, "VGG11": 4, "VGG11BN": 4, "ResNet18": 4, "ResNet18BN": 4}


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def convnet(name: str, **arguments: Any) -> ConvNet:
    net = network(name, **arguments)
    assert isinstance(net, ConvNet)
    return net


def smallest_resolution(name: str) -> int:
    """The smallest resolution of the fixed names; ConvNetD<n> halves n times."""
    if name.startswith("ConvNetD"):
        return int(2 ** int(name.removeprefix("ConvNetD")))
    return SMALLEST.get(name, 2)


def runs_here(name: str, resolution: int) -> bool:
    """Leave out what adds time and no case: one network per family at 128 px, the widest at 8 px only."""
    if name in WIDE:
        return resolution == 8
    if resolution == 128 and name not in ONE_PER_FAMILY:
        return False
    return resolution >= smallest_resolution(name)


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("ConvNet", {}, 320_010),
        ("ConvNet", {"classes": 100}, 504_420),
        ("ConvNetD4", {"classes": 200, "resolution": 64}, 857_160),
        ("ConvNet", {"classes": 200, "resolution": 64}, 857_160),
        ("ConvNetD2W32", {"channels": 1, "resolution": 8}, 10_986),
        ("ConvNet", {"channels": 1, "resolution": 28}, 317_706),
    ],
)
def test_published_sizes(name: str, arguments: dict[str, int], count: int) -> None:
    assert parameter_count(network(name, **arguments)) == count


@pytest.mark.parametrize("case_name", CASES)
def test_parameter_names_and_shapes_match_the_reference(golden: Golden, case_name: str) -> None:
    case = golden(f"unroll_{case_name}.npz")
    named = list(network_of(case).named_parameters())
    assert [name for name, _ in named] == case["param_names"].tolist()
    assert [",".join(map(str, p.shape)) for _, p in named] == case["param_shapes"].tolist()


@pytest.mark.parametrize("case_name", CASES)
def test_student_training_matches_the_reference(golden: Golden, case_name: str) -> None:
    """Plain SGD on soft labels in float64 ends where the reference ended: the forward pass is the same."""
    case = golden(f"unroll_{case_name}.npz")
    net = network_of(case).train()
    names = [name for name, _ in net.named_parameters()]
    shapes = [parameter.shape for parameter in net.parameters()]
    theta = torch.from_numpy(case["theta_start"])
    images, labels = torch.from_numpy(case["images"]), torch.from_numpy(case["label_logits"])
    for batch in torch.from_numpy(case["batch_indices"]).split(case["batch_sizes"].tolist()):
        theta = theta.detach().requires_grad_()
        pieces = theta.split([shape.numel() for shape in shapes])
        weights = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        logits = functional_call(net, weights, images[batch])
        loss = nn.functional.cross_entropy(logits, labels[batch].softmax(1))
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = theta.detach() - float(case["syn_lr"]) * gradient
    end = torch.from_numpy(case["theta_end"])
    moved = (end - torch.from_numpy(case["theta_start"])).norm()
    assert moved > 1e-3 * end.norm()
    assert (theta - end).norm() / moved < 1e-9

    target, start = torch.from_numpy(case["theta_target"]), torch.from_numpy(case["theta_start"])
    left, count = (theta - target).square(), int(float(case["mask_ratio"]) * theta.numel())
    kept = torch.ones_like(theta, dtype=torch.bool)
    if str(case["mask_kind"]) == "depth":
        kept[:count] = False
    elif str(case["mask_kind"]) == "loss":
        kept[left.argsort()[:count]] = False
    loss = left[kept].sum() / (start - target).square()[kept].sum()
    assert float(loss) == pytest.approx(float(case["loss"]), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [(name, size) for name in network_names() for size in RESOLUTIONS if runs_here(name, size)],
)
def test_every_name_at_every_resolution(name: str, resolution: int) -> None:
    """Logits have the right shape, equal classifier(embed), depend on the image, and reach every weight."""
    torch.manual_seed(0)
    channels = 1 if resolution in (8, 28) else 3
    net = network(name, channels=channels, classes=7, resolution=resolution)
    x = torch.randn(2, channels, resolution, resolution)
    logits, features = net(x), net.embed(x)
    assert logits.shape == (2, 7)
    assert features.shape == (2, net.classifier.in_features)
    if not name.endswith("BN"):
        assert torch.equal(logits, net.classifier(features))
    assert (logits[0] - logits[1]).abs().max() > 1e-7
    nn.functional.cross_entropy(logits, torch.tensor([1, 5])).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        if key.endswith("weight"):
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        (name, resolution)
        for name in network_names()
        for resolution in (8, 28)
        if name.startswith("ConvNet") and name not in WIDE and smallest_resolution(name) <= resolution
    ],
)
def test_convnets_are_twice_differentiable(name: str, resolution: int) -> None:
    """The gradient of a gradient, which distillation needs, agrees with central differences in float64."""
    torch.manual_seed(1)
    width = {} if "W" in name else {"width": 8}
    net = network(name, channels=1, classes=3, resolution=resolution, **width).double()
    x = torch.randn(3, 1, resolution, resolution, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1])
    weight = net.features[0].weight  # type: ignore[index, union-attr]

    def squared_gradient(images: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(net(images), labels)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        return gradient.square().sum()

    (second,) = torch.autograd.grad(squared_gradient(x), x)
    direction = second / second.norm()
    step = 1e-6
    ahead, behind = (squared_gradient(x + sign * step * direction).detach() for sign in (1, -1))
    assert second.norm() > 0
    assert float((ahead - behind) / (2 * step)) == pytest.approx(float(second.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConvNetD2W32", {"depth": 2, "width": 32}),
        ("ConvNetW32D2", {"depth": 2, "width": 32}),
        ("ConvNetW100", {"width": 100, "depth": 3}),
        ("ConvNetW64D1NNASMP", {"width": 64, "depth": 1, "norm": "none", "activation": "sigmoid"}),
        ("ConvNetMPAL", {"activation": "leakyrelu", "pooling": "max"}),
        ("ConvNetBN", {"norm": "batch"}),
        ("ConvNetLN", {"norm": "layer"}),
        ("ConvNetIN", {"norm": "instance"}),
        ("ConvNetGN", {"norm": "group"}),
        ("ConvNetAL", {"activation": "leakyrelu"}),
        ("ConvNetAR", {"activation": "relu"}),
        ("ConvNetNP", {"pooling": "none"}),
        ("ConvNetAP", {"pooling": "avg"}),
    ],
)  # fmt: skip
def test_convnet_names(name: str, expected: dict[str, Any]) -> None:
    config = convnet(name).config
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("resolution", "channels", "depth"),
    [(2, 3, 1), (4, 3, 2), (8, 1, 2), (16, 3, 2), (28, 1, 3), (28, 3, 3), (32, 3, 3), (48, 3, 3), (64, 3, 4),
     (96, 3, 4), (128, 3, 5), (256, 3, 6)],
)  # fmt: skip
def test_default_depth(resolution: int, channels: int, depth: int) -> None:
    assert default_depth(channels, resolution) == depth
    if resolution <= 128:
        net = convnet("ConvNetW4", channels=channels, resolution=resolution)
        assert net.config.depth == depth


def test_config_rebuilds_the_network() -> None:
    """The config holds canonical names, cannot be changed, and the seed alone decides the weights."""
    torch.manual_seed(3)
    net = ConvNet(channels=1, classes=4, width=12, depth=2, resolution=9, norm="groupnorm", pooling="maxpooling")
    assert dataclasses.asdict(net.config) == {
        "channels": 1, "classes": 4, "width": 12, "depth": 2, "resolution": 9,
        "norm": "group", "activation": "relu", "pooling": "max",
    }  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.config.width = 3  # type: ignore[misc]
    torch.manual_seed(3)
    twin = ConvNet(**dataclasses.asdict(net.config))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_odd_sizes_floor() -> None:
    net = ConvNet(resolution=31, depth=3, width=8)
    assert net.config.map_sizes == (31, 15, 7, 3)
    assert net.classifier.in_features == 8 * 9
    assert net(torch.randn(1, 3, 31, 31)).shape == (1, 10)


def test_28px_is_padded_for_one_channel_only() -> None:
    assert ConvNet(channels=1, resolution=28).config.map_sizes == (32, 16, 8, 4)
    assert ConvNet(channels=3, resolution=28).config.map_sizes == (28, 14, 7, 3)
    assert ConvNet(channels=1, resolution=27).config.map_sizes == (27, 13, 6, 3)


def test_largest_possible_depth_is_the_one_named() -> None:
    for channels, resolution, limit in [(3, 32, 5), (3, 31, 4), (1, 28, 5), (3, 28, 4), (1, 8, 3)]:
        with pytest.raises(InputError, match=f"largest possible depth is {limit}"):
            ConvNet(channels=channels, resolution=resolution, depth=limit + 1, width=4)
        net = ConvNet(channels=channels, resolution=resolution, depth=limit, width=4)
        assert net(torch.randn(2, channels, resolution, resolution)).shape == (2, 10)
    assert ConvNet(resolution=8, depth=6, pooling="none", width=4).config.map_sizes[-1] == 8


@pytest.mark.parametrize("name", [name for name in network_names() if smallest_resolution(name) > 2])
def test_below_the_smallest_resolution_is_refused(name: str) -> None:
    smallest = smallest_resolution(name)
    with pytest.raises(InputError, match=f"at least {smallest} px|largest possible depth"):
        network(name, resolution=smallest - 1)
    network(name, resolution=smallest, classes=2)


def test_vgg_and_resnet_see_64_px() -> None:
    assert network("VGG11", resolution=64).classifier.in_features == 512 * 4
    resnet = network("ResNet18", resolution=64)
    maps = resnet.features(torch.randn(1, 3, 64, 64))  # type: ignore[operator]
    assert maps.shape == (1, 512, 8, 8)


def test_resnet_batch_norm_variant_has_the_usual_size() -> None:
    """The CIFAR-stem ResNet18 is known to have 11,173,962 parameters; instance norm is affine, so also."""
    assert parameter_count(network("ResNet18BN")) == parameter_count(network("ResNet18")) == 11_173_962
    assert any(isinstance(module, nn.BatchNorm2d) for module in network("VGG11BN").modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network("VGG11").modules())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ConvNte", {}, "Did you mean 'ConvNet'"),
        ("convnet", {}, "Did you mean 'ConvNet'"),
        ("ResNet", {}, "Did you mean 'ResNet18'"),
        ("ConvNetD3Q", {}, "unknown network 'ConvNetD3Q'"),
        ("ConvNetD", {}, "unknown network"),
        ("ConvNetD0", {}, "depth must be at least 1"),
        ("ConvNetD2D3", {}, "gives its depth twice"),
        ("ConvNetBNNN", {}, "gives its norm twice"),
        ("ConvNetBN", {"norm": "instance"}, "already says norm='batch'"),
        ("ConvNet", {"widht": 3}, "Did you mean 'width'"),
        ("MLP", {"norm": "batch"}, "has no variants"),
        ("ConvNet", {"classes": 0}, "classes must be a positive integer"),
        ("ConvNet", {"channels": True}, "channels must be a positive integer"),
        ("ConvNet", {"width": 2.5}, "width must be a positive integer"),
        ("ConvNet", {"norm": "instnce"}, "Did you mean 'instance'"),
        ("ConvNet", {"activation": "gelu"}, "unknown activation 'gelu'"),
        ("ConvNet", {"pooling": "avgpool"}, "Did you mean 'avg"),
        ("ConvNet", {"norm": None}, "unknown norm None"),
        ("ConvNetGN", {"width": 10}, "use a multiple of 4"),
        ("ConvNet", {"resolution": 1}, "at least 2 px"),
        ("LeNet", {"resolution": 12}, "at least 16 px"),
        ("AlexNet", {"resolution": 7}, "at least 8 px"),
        ("ResNet18", {"resolution": 2}, "at least 4 px"),
    ],
)
def test_errors_name_the_way_out(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(name, **arguments)


def test_a_variant_may_repeat_the_name() -> None:
    assert convnet("ConvNetBN", norm="batchnorm").config.norm == "batch"


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
@pytest.mark.parametrize("shape", [(2, 3, 16, 32), (2, 1, 32, 32), (3, 32, 32), (2, 3, 32, 16)])
def test_wrong_images_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"takes images \[N, 3, 32, 32\]"):
        network(name)(torch.zeros(shape))


def test_numpy_sizes_become_plain_integers() -> None:
    net = ConvNet(classes=np.int64(4), width=np.int32(8))  # type: ignore[arg-type]
    assert type(net.config.classes) is int
    assert type(net.config.width) is int


@pytest.mark.parametrize(
    ("name", "resolution", "lr"),
    # Without a norm, twelve steps get somewhere at some rates only.
    [("ConvNetD2W16BN", 8, 0.02), ("MLP", 8, 0.02), ("LeNet", 16, 0.1), ("LeNet", 64, 0.02), ("AlexNet", 8, 0.2)]
    + [("VGG11", 8, 0.002), ("VGG11BN", 8, 0.02), ("ResNet18", 8, 0.02), ("ResNet18BN", 8, 0.02)]
    + [("ConvNetW16", 64, 0.02)],
)
def test_networks_train(name: str, resolution: int, lr: float) -> None:
    """A few steps on noise with labels: the loss falls by a tenth at least, and testing uses the trained weights."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, resolution, resolution, generator=draws)
    labels = torch.arange(8) % 4
    trainer = Trainer(NetworkSpec(name, 3, 4, resolution).build(0, "t"), device=torch.device("cpu"), backend="auto")
    optimizer = SGD(lr, momentum=0.9)
    losses = [trainer.epoch(images, labels, [torch.arange(8)], optimizer) for _ in range(12)]
    assert all(np.isfinite(losses)) and losses[-1] < 0.9 * losses[0]
    before = trainer.logits(images)
    trainer.theta = trainer.theta * 0.5
    assert float((trainer.logits(images) - before).norm() / before.norm()) > 1e-3
