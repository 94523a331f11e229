"""The networks that the native engines serve, and where their parameters lie in the flat vector."""

from __future__ import annotations

from dataclasses import dataclass

from ..models import ConvNet, ConvNetConfig
from .base import Task


def refuse_network(task: Task) -> str | None:
    """Why the network is not one that a native engine computes, as a sentence for the user; None when it is."""
    module = task.network.module
    if not isinstance(module, ConvNet):
        return f"it serves pad_fast.ConvNet, not {type(module).__name__}; use backend='autograd'"
    config = module.config
    if (config.norm, config.activation, config.pooling) != ("instance", "relu", "avg"):
        return (
            "it serves ConvNets with instance norm, relu and avg pooling, not "
            f"{config.norm} norm, {config.activation} and {config.pooling} pooling; use backend='autograd'"
        )
    return None


def config_of(task: Task) -> ConvNetConfig:
    """The configuration of a network that :func:`refuse_network` let pass."""
    module = task.network.module
    assert isinstance(module, ConvNet)  # refuse() has seen to it
    return module.config


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
