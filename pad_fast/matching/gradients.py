r"""Gradient matching (DC, Zhao et al. 2021, arXiv 2006.05929; DSA, arXiv 2102.08259), one criterion of :mod:`matching`.

For every class c, with `a = g(theta, real images of c)` and `b = g(theta, synthetic images of c)` the gradients of the
mean cross entropy, and r running over the output channels of every layer,

    D = sum_c sum_r (1 - <a_r, b_r> / (||a_r|| ||b_r||))                               (1)
    v_r = dD/db_r = (<a_r, b_r> / ||b_r||^2  b_r - a_r) / (||a_r|| ||b_r||)            (2)
    dD/dx_c = d<v, g(theta, x_c)>/dx_c,   v held constant                              (3)

so an update needs plain steps and one adjoint per class: real images never see a second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engines import Engine, Task
from ..errors import InputError
from ..models.flat import Channels, FlatNetwork
from ..runtime.shapes import Float
from .masks import ParameterMask


def channels_of(network: FlatNetwork, mask: ParameterMask) -> tuple[Channels, ...]:
    """The output channels that are compared, in the order of the flat vector.

    Parameters of one dimension (biases, scales and shifts of norms) have no channels. Under a mask, a channel counts
    when its weights begin at or behind the cut: `depth` r cuts at entry `int(r * P)`, `layers` n where layer n begins.

    Raises:
        InputError: a `loss` mask, which has no meaning here; a network that hides its parameters' shapes; a mask that
            leaves nothing.
    """
    if mask.kind == "loss":
        raise InputError(
            "mask 'loss' orders parameters by their distance to an expert, and gradient matching has none; "
            "use depth, layers or none"
        )
    if network.takes_flat_param:
        raise InputError("gradient matching compares layer by layer; pass the network without its flat wrapper")
    cut = mask.first_kept(network)
    found, offset = [], 0
    for shape in network.shapes:
        if len(shape) > 1:
            length = shape[1:].numel()
            left = min(shape[0], max(0, -(-(cut - offset) // length)))  # channels in front of the cut
            if left < shape[0]:
                found.append(Channels(offset + left * length, shape[0] - left, length))
        offset += shape.numel()
    if not found:
        raise InputError(f"{mask!r} leaves no weights whose gradients could be matched; lower it")
    return tuple(found)


def gradient_distance(
    real: Float[Tensor, "G P"], synthetic: Float[Tensor, "G P"], channels: Sequence[Channels]
) -> Float[Tensor, " G"]:
    """Equation (1) without the sum over classes: the truth that the fused forms are compared with.

    Args:
        real, synthetic: gradients `[G, P]`, one row per class; differentiable in both.
        channels: see :func:`channels_of`.

    Returns:
        `[G]`. A channel without a direction, one of whose gradients is zero, counts 1.
    """
    total = real.new_zeros(len(real))
    for piece in channels:
        a, b = _view(real, piece), _view(synthetic, piece)
        some = (a.detach() != 0).any(-1) & (b.detach() != 0).any(-1)
        # Norms of the others are replaced before they are divided by, so that no gradient is NaN.
        norms = torch.where(some, a.square().sum(-1), 1).sqrt() * torch.where(some, b.square().sum(-1), 1).sqrt()
        total = total + (1 - (a * b).sum(-1) / norms).sum(-1)
    return total


def gradient_distance_and_direction(
    real: Float[Tensor, "G P"], synthetic: Float[Tensor, "G P"], channels: Sequence[Channels]
) -> tuple[Float[Tensor, " G"], Float[Tensor, "G P"]]:
    """Equations (1) and (2) in one go, in batched torch: :func:`gradient_distance` and its gradient in `synthetic`.

    Returns:
        Distances `[G]`, and `v` `[G, P]`, zero outside the channels. Nothing is recorded for autograd.
    """
    total = real.new_zeros(len(real))
    v = torch.zeros_like(synthetic)
    for piece in channels:
        a, b = _view(real, piece), _view(synthetic, piece)
        aa, bb, ab = torch.linalg.vecdot(a, a), torch.linalg.vecdot(b, b), torch.linalg.vecdot(a, b)
        norms = aa.sqrt() * bb.sqrt()
        scale = torch.where(norms > 0, 1 / norms, 0)
        cosine = ab * scale
        along = torch.where(norms > 0, cosine / bb, 0)
        out = _view(v, piece)
        torch.mul(b, along[..., None], out=out).addcmul_(a, scale[..., None], value=-1)
        total += (1 - cosine).sum(-1)
    return total, v


def match_gradients(
    engine: Engine,
    task: Task,
    theta: Float[Tensor, " P"],
    real: Sequence[Float[Tensor, "_ C H W"]],
    synthetic: Float[Tensor, "G B C H W"],
    channels: Sequence[Channels],
) -> tuple[Float[Tensor, ""], Float[Tensor, "G B C H W"]]:
    """`D` of all classes and its gradient in the synthetic images, both without a graph.

    Args:
        theta: parameters `[P]`.
        real: images of every class `[B_c, C, H, W]`, already augmented.
        synthetic: `[classes, ipc, C, H, W]`, likewise.
        channels: see :func:`channels_of`.

    Returns:
        `[]` and `[classes, ipc, C, H, W]`.
    """
    device = synthetic.device
    labels = [torch.full((len(images),), label, device=device) for label, images in enumerate(real)]
    given = engine.group_gradients(task, theta, real, labels)
    own = torch.arange(len(real), device=device)[:, None].expand(synthetic.shape[:2])
    made, pull = engine.group_pullback(task, theta, synthetic, own)
    form = engine.gradient_distance
    measure = gradient_distance_and_direction if form is None else form.value_and_direction
    distances, v = measure(given, made, channels)
    return distances.sum(), pull(v)


def _view(flat: Float[Tensor, "G P"], piece: Channels) -> Float[Tensor, "G rows length"]:
    """`[G, rows, length]` of `[G, P]`."""
    stop = piece.offset + piece.rows * piece.length
    return flat[:, piece.offset : stop].unflatten(1, (piece.rows, piece.length))
