"""Instance-norm ConvNets as others write them, and wrappers around them; all of one shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (2, 9, 9)
WIDTH, CLASSES, FEATURES = 6, 4, 24


class Lists(nn.Module):
    """Layers by kind, as NCFM's ConvNet has them: in the flat vector all convolutions are ahead of all norms."""

    def __init__(self, *, crossed: bool = False) -> None:
        super().__init__()
        self.act, self.pool, self.crossed = nn.ReLU(), nn.AvgPool2d(kernel_size=2, stride=2), crossed
        self.layers = nn.ModuleDict(
            {
                "conv": nn.ModuleList(nn.Conv2d(inputs, WIDTH, 3, padding=1) for inputs in (2, WIDTH)),
                "norm": nn.ModuleList(nn.GroupNorm(WIDTH, WIDTH, affine=True) for _ in range(2)),
                "act": nn.ModuleList([self.act] * 2),
                "pool": nn.ModuleList([self.pool] * 2),
            }
        )
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        for depth in range(2):
            for kind in ("conv", "norm", "act", "pool"):
                x = self.layers[kind][1 - depth if self.crossed and kind == "norm" else depth](x)
        features = x.view(len(x), -1)
        logits = self.classifier(features)
        return (logits, features) if return_features else logits


class Functional(nn.Module):
    """Instance norm by its own name; activation and pooling as functions; the head is made first and named otherwise.

    Args:
        eps: of the norm.
        act: the activation.
        pool: the pooling.
    """

    def __init__(self, *, eps: float = 1e-5, act: Any = functional.relu, pool: Any = None) -> None:
        super().__init__()
        self.logit = nn.Linear(FEATURES, CLASSES)
        self.conv1, self.conv2 = nn.Conv2d(2, WIDTH, 3, padding="same"), nn.Conv2d(WIDTH, WIDTH, 3, padding="same")
        self.norm1, self.norm2 = (nn.InstanceNorm2d(WIDTH, affine=True) for _ in range(2))
        self.eps, self.act, self.pool = eps, act, pool or (lambda x: functional.avg_pool2d(x, 2))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = functional.instance_norm(conv(x), weight=norm.weight, bias=norm.bias, eps=self.eps)
            x = self.pool(self.act(x))
        return self.logit(x.flatten(1))


def halved(x: Tensor) -> Tensor:
    """Pooling by hand."""
    half = x.shape[-1] // 2
    return x[..., : 2 * half, : 2 * half].reshape(*x.shape[:2], half, 2, half, 2).mean((3, 5))


class View(nn.Module):
    """Flattening, as a module of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class Block(nn.Module):
    """One block, with what is not used lying about."""

    def __init__(self, inputs: int, act: nn.Module, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, WIDTH, 3, 1, 1), nn.GroupNorm(WIDTH, WIDTH)
        self.act, self.drop, self.down = act, drop, nn.AvgPool2d(2, 2)
        self.other, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.act(self.norm(self.conv(x)))))


class Blocks(nn.Module):
    """Blocks of one's own class, unused modules, and the criterion kept inside."""

    def __init__(self, *, act: nn.Module | None = None, drop: nn.Module | None = None, extra: bool = False) -> None:
        super().__init__()
        act, drop = act or nn.ReLU(inplace=True), drop or nn.Dropout(0.0)
        self.body = nn.Sequential(Block(2, act, drop), Block(WIDTH, act, drop))
        self.view, self.head, self.criterion = View(), nn.Linear(FEATURES, CLASSES), nn.CrossEntropyLoss()
        if extra:
            self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.view(self.body(x)))


def sequential() -> nn.Sequential:
    """No class of its own at all."""
    blocks = [
        part
        for inputs in (2, WIDTH)
        for part in (
            nn.Conv2d(inputs, WIDTH, 3, padding=1),
            nn.GroupNorm(WIDTH, WIDTH),
            nn.ReLU(True),
            nn.AvgPool2d(2),
        )
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(FEATURES, CLASSES))


class Pair(Blocks):
    """Returns more than logits."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits.softmax(1)


class Reparametrised(nn.Module):
    """Owns one flat parameter; the modules inside keep views of it, and `forward` puts them back."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.places = [
            (owner, name, parameter.shape)
            for owner in module.modules()
            for name, parameter in owner.named_parameters(recurse=False)
        ]
        self.flat_param = nn.Parameter(torch.cat([p.detach().flatten() for p in module.parameters()]))
        for owner, name, _ in self.places:
            delattr(owner, name)
        self.point_into(self.flat_param)

    def point_into(self, theta: Tensor) -> None:
        offset = 0
        for owner, name, shape in self.places:
            setattr(owner, name, theta[offset : offset + shape.numel()].view(shape))
            offset += shape.numel()

    def forward(self, x: Tensor, flat_param: Tensor | None = None) -> Tensor:
        self.point_into(self.flat_param if flat_param is None else flat_param)
        try:
            return self.module(x)
        finally:
            self.point_into(self.flat_param)


def perturbed(module: nn.Module) -> nn.Module:
    """The network in float64, norm scales and shifts off 1 and 0, always the same numbers."""
    module = module.double()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return module
