"""The other architectures distilled images are evaluated on: MLP, LeNet, AlexNet, VGG11 and ResNet18.

These are the small-image forms of the published networks (stride-1 stems, one linear classifier). All of
them take any resolution above their minimum: a 64 px image is seen at 64 px, and the classifier is sized to
match. VGG11 and ResNet18 halve the map five and three times; where that would leave a norm less than 2x2
pixels to average over (instance norm of one pixel is constant), the remaining stages keep the size instead.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError
from .layers import NORMS, ImageNetwork, canonical, normalisation


class MLP(ImageNetwork):
    """Three linear layers with two hidden layers of 128 units and ReLU; reads the flattened image."""

    def __init__(self, *, channels: int = 3, classes: int = 10, resolution: int = 32) -> None:
        super().__init__(channels=channels, classes=classes, resolution=resolution)
        width = 128
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * resolution * resolution, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The second hidden layer [N, 128] of images [N, C, H, W]."""
        self.check_images(x)
        hidden: Tensor = self.features(x)
        return hidden


class LeNet(ImageNetwork):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; needs 16 px. 28 px images are padded to 32."""

    def __init__(self, *, channels: int = 3, classes: int = 10, resolution: int = 32) -> None:
        super().__init__(channels=channels, classes=classes, resolution=resolution)
        _require_resolution("LeNet", resolution, 16)
        padding = 2 if resolution == 28 else 0
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        side = ((resolution + 2 * padding - 4) // 2 - 4) // 2
        self.hidden = nn.Sequential(nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
        self.classifier = nn.Linear(84, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The last hidden layer [N, 84] of images [N, C, H, W]."""
        self.check_images(x)
        hidden: Tensor = self.hidden(self.features(x).flatten(1))
        return hidden


class AlexNet(ImageNetwork):
    """AlexNet's five convolutions behind a stride-1 5x5 stem, without normalisation; needs 8 px."""

    def __init__(self, *, channels: int = 3, classes: int = 10, resolution: int = 32) -> None:
        super().__init__(channels=channels, classes=classes, resolution=resolution)
        _require_resolution("AlexNet", resolution, 8)
        # One-channel 28 px images become 32 px, as in the ConvNet.
        padding = 4 if channels == 1 and resolution == 28 else 2
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        side = (resolution + 2 * padding - 4) // 8
        self.classifier = nn.Linear(192 * side * side, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The flattened last map [N, F] of images [N, C, H, W]."""
        self.check_images(x)
        maps: Tensor = self.features(x)
        return maps.flatten(1)


class VGG11(ImageNetwork):
    """VGG configuration A (Simonyan and Zisserman 2014) with a norm after every convolution; needs 4 px.

    Args:
        norm: "instance" (default), "batch", "layer", "group" or "none".
    """

    def __init__(self, *, channels: int = 3, classes: int = 10, resolution: int = 32, norm: str = "instance") -> None:
        super().__init__(channels=channels, classes=classes, resolution=resolution)
        norm = canonical(norm, NORMS, "norm", "norm")
        _require_resolution("VGG11", resolution, 4)
        stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))
        padding = 3 if channels == 1 and resolution == 28 else 1
        layers: list[nn.Module] = []
        inputs, side = channels, resolution + 2 * padding - 2
        for number, widths in enumerate(stages):
            for width in widths:
                layers.append(nn.Conv2d(inputs, width, 3, padding=padding))
                if norm != "none":
                    layers.append(normalisation(norm, width, side))
                layers.append(nn.ReLU())
                inputs, padding = width, 1
            if side // 2 >= (1 if number == len(stages) - 1 else 2):
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * side * side, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The flattened last map [N, F] of images [N, C, H, W]; F = 512 up to 32 px, 2048 at 64 px."""
        self.check_images(x)
        maps: Tensor = self.features(x)
        return maps.flatten(1)


class ResNet18(ImageNetwork):
    """ResNet18 (He et al. 2015) with the CIFAR stem: one stride-1 3x3 convolution, no pooling; needs 4 px.

    Global average pooling precedes the classifier at every resolution.

    Args:
        norm: "instance" (default), "batch", "layer", "group" or "none".
    """

    def __init__(self, *, channels: int = 3, classes: int = 10, resolution: int = 32, norm: str = "instance") -> None:
        super().__init__(channels=channels, classes=classes, resolution=resolution)
        norm = canonical(norm, NORMS, "norm", "norm")
        _require_resolution("ResNet18", resolution, 4)
        side, inputs = resolution, 64
        layers: list[nn.Module] = [_convolution_norm(channels, inputs, 3, 1, norm, side), nn.ReLU()]
        for width in (64, 128, 256, 512):
            halve = width > 64 and (side + 1) // 2 >= 2
            side = (side + 1) // 2 if halve else side
            layers.append(_ResidualBlock(inputs, width, 2 if halve else 1, norm, side))
            layers.append(_ResidualBlock(width, width, 1, norm, side))
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The spatial mean of the last maps, [N, 512], of images [N, C, H, W]."""
        self.check_images(x)
        maps: Tensor = self.features(x)
        return maps.mean((2, 3))


class _ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv x)))) + shortcut x); a 1x1 convolution where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int, norm: str, side: int) -> None:
        super().__init__()
        self.first = _convolution_norm(inputs, width, 3, stride, norm, side)
        self.second = _convolution_norm(width, width, 3, 1, norm, side)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = _convolution_norm(inputs, width, 1, stride, norm, side)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu()) + self.shortcut(x)
        return out.relu()


def _convolution_norm(inputs: int, outputs: int, kernel: int, stride: int, norm: str, side: int) -> nn.Sequential:
    """Convolution and norm; the convolution needs a bias only where no norm follows to supply one."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=norm == "none")
    if norm == "none":
        return nn.Sequential(convolution)
    return nn.Sequential(convolution, normalisation(norm, outputs, side))


def _require_resolution(name: str, resolution: int, smallest: int) -> None:
    if resolution < smallest:
        raise InputError(
            f"{name} needs images of at least {smallest} px, got resolution {resolution}; "
            "use ConvNet, MLP or larger images"
        )
