"""ConvNet, the network of the dataset distillation literature (from Dataset Condensation, arXiv 2006.05929).

Each of `depth` blocks is conv3x3 -> norm -> activation -> 2x2 pooling; a linear classifier reads the
flattened last map. Trajectory matching distances depend on the order of the flat parameter vector, which is
that of `parameters()`: per block conv.weight, conv.bias, norm.weight, norm.bias; last the classifier.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layers import NORMS, ImageNetwork, canonical, normalisation, positive

ACTIVATIONS = ("relu", "sigmoid", "leakyrelu")
POOLINGS = ("avg", "max", "none")


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig:
    """The arguments of a :class:`ConvNet`, with norm, activation and pooling under their canonical names."""

    channels: int
    classes: int
    width: int
    depth: int
    resolution: int
    norm: str
    activation: str
    pooling: str

    @property
    def first_padding(self) -> int:
        """Padding of the first convolution: 3 for 28x28 images of one channel, which become 32x32; else 1."""
        return 3 if self.channels == 1 and self.resolution == 28 else 1

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """Side of each block's convolution output, then of the last block's output: `depth + 1` numbers.

        Pooling floors: a 7x7 map becomes 3x3.
        """
        sizes = [self.resolution + 2 * self.first_padding - 2]
        for _ in range(self.depth):
            sizes.append(sizes[-1] if self.pooling == "none" else sizes[-1] // 2)
        # Later convolutions keep the size: a block's output side is also the next convolution's.
        return tuple(sizes)


class ConvNet(ImageNetwork):
    """Plain convolutional classifier; 320,010 parameters with the defaults.

    Args:
        channels: channels of the images.
        classes: number of classes, the width of the logits.
        width: channels of every convolution.
        depth: number of blocks; 3 for 32 px, 4 for 64 px, 5 for 128 px are the published choices.
        resolution: side of the (square) images in pixels.
        norm: "instance", "batch", "layer", "group" (4 groups) or "none"; "instancenorm" etc. mean the same.
        activation: "relu", "sigmoid" or "leakyrelu" (slope 0.01).
        pooling: "avg", "max" or "none"; "avgpooling" etc. mean the same.

    Attributes:
        features: the blocks, as one `nn.Sequential`; norm "none" and pooling "none" leave no module behind.
        classifier: the last, linear layer.
        config: the arguments, as a frozen :class:`ConvNetConfig`.

    Weights are drawn from torch's defaults with the global generator.

    Raises:
        InputError: an unknown name, a size that is not a positive integer, a width that group norm cannot
            split, or more blocks than the resolution can be halved.

    Example:
        >>> import torch
        >>> from pad_fast.models import ConvNet
        >>> net = ConvNet(channels=1, width=32, depth=2, resolution=8)
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.embed(torch.zeros(5, 1, 8, 8)).shape
        (torch.Size([5, 10]), torch.Size([5, 128]))
        >>> sum(p.numel() for p in net.parameters())
        10986
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 10,
        width: int = 128,
        depth: int = 3,
        resolution: int = 32,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ) -> None:
        super().__init__(channels=channels, classes=classes, resolution=resolution)
        self.config = ConvNetConfig(
            channels=self.channels,
            classes=self.classes,
            width=positive("width", width),
            depth=positive("depth", depth),
            resolution=self.resolution,
            norm=canonical(norm, NORMS, "norm", "norm"),
            activation=canonical(activation, ACTIVATIONS, "", "activation"),
            pooling=canonical(pooling, POOLINGS, "pooling", "pooling"),
        )
        self.features = _blocks(self.config)
        last = self.config.map_sizes[-1]
        self.classifier = nn.Linear(self.config.width * last * last, self.classes)

    @classmethod
    def meta(cls, config: ConvNetConfig) -> ConvNet:
        """A ConvNet without memory for its parameters, to look at or to call with parameters of one's own."""
        with torch.device("meta"):
            return cls(**asdict(config))

    def embed(self, x: Tensor) -> Tensor:
        """The flattened last map [N, width * side * side] of images [N, C, H, W].

        Raises:
            InputError: the images do not have the channels or the size this network was built for.
        """
        self.check_images(x)
        maps: Tensor = self.features(x)
        return maps.flatten(1)

    def block_maps(self, x: Tensor) -> list[Tensor]:
        """The output of every block [N, width, side, side], first to last, of images [N, C, H, W].

        Raises:
            InputError: the images do not have the channels or the size this network was built for.
        """
        self.check_images(x)
        maps: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                maps.append(x)
            x = layer(x)
        return [*maps[1:], x]


def largest_depth(channels: int, resolution: int) -> int:
    """The largest ConvNet depth whose pooling leaves at least one pixel of such an image."""
    side = 32 if channels == 1 and resolution == 28 else resolution
    return side.bit_length() - 1


def default_depth(channels: int, resolution: int) -> int:
    """The depth of "ConvNet" by name: 2 up to 16 px, 3 below 64 px, then one more per doubling."""
    usual = 2 if resolution <= 16 else max(3, resolution.bit_length() - 3)
    return max(1, min(usual, largest_depth(channels, resolution)))


def _blocks(config: ConvNetConfig) -> nn.Sequential:
    if config.map_sizes[-1] < 1:
        limit = largest_depth(config.channels, config.resolution)
        raise InputError(
            f"depth {config.depth} halves {config.resolution} px images until nothing is left; the largest "
            f"possible depth is {limit}" + ("" if limit else ": use images of at least 2 px or pooling='none'")
        )
    layers: list[nn.Module] = []
    for block, size in enumerate(config.map_sizes[:-1]):
        first = block == 0
        padding = config.first_padding if first else 1
        layers.append(nn.Conv2d(config.channels if first else config.width, config.width, 3, padding=padding))
        if config.norm != "none":
            layers.append(normalisation(config.norm, config.width, size))
        layers.append(_activation(config.activation))
        if config.pooling != "none":
            layers.append(nn.AvgPool2d(2) if config.pooling == "avg" else nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _activation(kind: str) -> nn.Module:
    if kind == "sigmoid":
        return nn.Sigmoid()
    return nn.ReLU() if kind == "relu" else nn.LeakyReLU(0.01)
