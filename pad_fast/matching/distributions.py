r"""Distribution matching (DM, Zhao & Bilen 2023, arXiv 2110.04181), one criterion of :mod:`matching`.

With `h_d(x)` the flattened output of the first d blocks of a random network, and means over the images of a class,

    L = sum_c sum_(d kept) || mean h_d(real_c) - mean h_d(synthetic_c) ||^2

The published criterion keeps the last block only, whose output is what the classifier sees (mask `none`). There is no
shallow layer to leave out of a single one; with a mask, the sum runs over all blocks but the shallow ones. This is our
definition of PAD's "filtering information embedding" for DM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engines import Engine, Task
from ..errors import InputError
from ..models.convnet import ConvNet
from ..models.flat import FlatNetwork
from ..runtime.shapes import Float
from .masks import ParameterMask


def blocks_kept(network: FlatNetwork, mask: ParameterMask) -> tuple[int, ...] | None:
    """Depths d whose block outputs are compared; None for the penultimate features alone (mask `none`).

    With D blocks, `depth` r keeps block b (from 0) when `b >= r * D`, and `layers` n all but the first n.

    Raises:
        InputError: a `loss` mask; a mask on a network that is no ConvNet; a mask that leaves nothing.
    """
    if mask.kind == "none":
        return None
    if mask.kind == "loss":
        raise InputError(
            "mask 'loss' orders parameters by their distance to an expert, and distribution matching has none; "
            "use depth, layers or none"
        )
    if not isinstance(network.module, ConvNet):
        raise InputError(
            f"a mask on distribution matching counts the blocks of a ConvNet, and {type(network.module).__name__} is "
            "none; use mask none"
        )
    depth = network.module.config.depth
    first = mask.amount * depth if mask.kind == "depth" else mask.amount
    kept = tuple(block + 1 for block in range(depth) if block >= first)
    if not kept:
        limit = f"{depth - 1} of them" if mask.kind == "layers" else f"a ratio of {(depth - 1) / depth:.3g}"
        raise InputError(f"{mask!r} leaves out all {depth} blocks; leave out at most {limit}")
    return kept


def match_distributions(
    engine: Engine,
    task: Task,
    theta: Float[Tensor, " P"],
    real: Sequence[Float[Tensor, "_ C H W"]],
    synthetic: Float[Tensor, "G B C H W"],
    blocks: Sequence[int] | None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "G B C H W"]]:
    """`L` and its gradient in the synthetic images, both without a graph.

    Args:
        theta: parameters `[P]`.
        real: images of every class `[B_c, C, H, W]`, already augmented.
        synthetic: `[classes, ipc, C, H, W]`, likewise.
        blocks: see :func:`blocks_kept`.

    Returns:
        `[]` and `[classes, ipc, C, H, W]`.
    """
    given = engine.mean_features(task, theta, real, blocks)
    made, pull = engine.mean_features_pullback(task, theta, synthetic, blocks)
    apart = [mine - theirs for mine, theirs in zip(made, given, strict=True)]
    return torch.stack([piece.square().sum() for piece in apart]).sum(), pull([2 * piece for piece in apart])
