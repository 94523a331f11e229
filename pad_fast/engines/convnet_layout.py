"""The networks that the native engines serve, and where their parameters lie in the flat vector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from ..models import ConvNetConfig
from .base import Task


def refuse_network(task: Task) -> str | None:
    """Why the network is not one that a native engine computes, as a sentence for the user; None when it is."""
    config = task.network.convnet
    if isinstance(config, str):
        return f"it serves pad_fast.ConvNet and networks that compute the same; {config}; use backend='autograd'"
    if (config.norm, config.activation, config.pooling) != ("instance", "relu", "avg"):
        return (
            "it serves ConvNets with instance norm, relu and avg pooling, not "
            f"{config.norm} norm, {config.activation} and {config.pooling} pooling; use backend='autograd'"
        )
    return None


def config_of(task: Task) -> ConvNetConfig:
    """The configuration of a network that :func:`refuse_network` let pass."""
    config = task.network.convnet
    assert isinstance(config, ConvNetConfig)  # refuse() has seen to it
    return config


def require_batch(task: Task, theta: Tensor, images: Tensor, labels: Tensor | None = None) -> None:
    """Check what a kernel would read: a caller's augmentation may return anything.

    Args:
        theta: to be `[P]` or `[K, P]`.
        images: to be `[B, channels, resolution, resolution]`, or `[K, B, ...]` for networks with images of their own.
        labels: to be `[B, classes]` (floating) or `[B]`, or the same for each of the K.

    Raises:
        InputError: another shape, dtype or device, which is named.
    """
    config = config_of(task)
    if theta.shape[-1] != task.network.parameter_count or theta.dtype != task.dtype or theta.device != task.device:
        raise InputError(
            f"parameters are {theta.dtype} {list(theta.shape)} on {theta.device}; the network has "
            f"{task.network.parameter_count:,}, to be {task.dtype} on {task.device}"
        )
    expected = (config.channels, config.resolution, config.resolution)
    if images.dim() not in (4, 5) or tuple(images.shape[-3:]) != expected:
        sides = ", ".join(map(str, expected))
        raise InputError(
            f"the network takes images [B, {sides}], got {list(images.shape)}; resize them (in augment, if that "
            "changed them), or build the network for them"
        )
    if images.dtype != task.dtype or images.device != task.device:
        raise InputError(
            f"a step got images of {images.dtype} on {images.device}; parameters are {task.dtype} on {task.device}, "
            "and augment must keep that"
        )
    if labels is None:
        return
    shape = images.shape[:-3] + ((config.classes,) if labels.is_floating_point() else ())
    if tuple(labels.shape) != shape:
        raise InputError(
            f"labels are {list(labels.shape)} for images {list(images.shape)} and a network of {config.classes} "
            f"classes; they must be {list(shape)}, and augment must keep the number of images: repeat an index in its "
            "batch for another sample of the same image"
        )


@dataclass(frozen=True)
class Block:
    """One block: 3x3 convolution, instance norm, ReLU, pooling.

    Attributes:
        inputs, outputs: channels.
        side: height and width of the convolution's output.
        w, g, b: offsets of the convolution's weight and of the norm's scale and shift in the flat vector.
    """

    inputs: int
    outputs: int
    side: int
    w: int
    g: int
    b: int


def blocks_of(config: ConvNetConfig) -> tuple[tuple[Block, ...], int]:
    """The blocks, first to last, and the offset of the classifier.

    Example:
        >>> from pad_fast import ConvNet
        >>> blocks, classifier = blocks_of(ConvNet(width=4, depth=2, resolution=8, channels=1).config)
        >>> [block.w for block in blocks], classifier
        ([0, 48], 204)
    """
    blocks, offset, inputs = [], 0, config.channels
    for side in config.map_sizes[:-1]:
        scale = offset + config.width * (9 * inputs + 1)  # behind the weight and the bias
        blocks.append(Block(inputs, config.width, side, offset, scale, scale + config.width))
        offset, inputs = scale + 2 * config.width, config.width
    return tuple(blocks), offset
