"""A ConvNet's student step and its adjoint as a sequence of operations on K trajectories at once.

Equation numbers are those of docs/cpu_engine.md. Which operations, a table decides. Activations are channels-last
`[K, B, H, W, C]`, parameters and gradients `[K, P]`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...models import ConvNetConfig
from ...runtime.shapes import Float
from ..base import Labels, StackedLabels, Wants
from ..convnet_layout import Block, blocks_of
from .operations import Filters, FirstBlockOperations, Operations, Place, Statistics


@dataclass(frozen=True, eq=False)
class _Visit:
    """One block in the tangent pass, kept for the way back."""

    block: Block
    h: Tensor
    hd: Tensor
    w: Filters
    v: Filters
    z: Tensor
    zd: Tensor
    stats: Tensor


class Steps:
    """Student steps of one network in one precision, with soft labels of one kind. Holds no tensors.

    Every method takes `theta` `[K, P]` and images `x` `[K, B, C, H, W]`, which may be expanded over K.
    """

    def __init__(
        self, operations: Operations, config: ConvNetConfig, precision: str, labels_are: str = "logits"
    ) -> None:
        self.ops, self.config, self.precision = operations, config, precision
        self.labels_are = labels_are
        blocks, self.classifier = blocks_of(config)
        self.later = blocks[1:]
        first = blocks[0]
        self.first: FirstBlockOperations = operations.first
        self.where: Place = first
        if config.channels <= operations.first.MOST_CHANNELS:
            self.where = operations.first.FirstBlock(
                channels=first.inputs,
                outputs=first.outputs,
                height=config.resolution,
                width=config.resolution,
                padding=config.first_padding,
                w=first.w,
                g=first.g,
                b=first.b,
            )
        else:
            self.first = _ManyChannels(operations)

    def logits(self, theta: Float[Tensor, "K P"], x: Float[Tensor, "K B C H W"]) -> Float[Tensor, "K B classes"]:
        """`[K, B, classes]`."""
        h, _ = self.first.forward(x, theta, self.where, precision=self.precision)
        for block, w in zip(self.later, self._weights(theta), strict=True):
            z = self.ops.conv.forward(h, w, precision=self.precision)
            h, _ = self.ops.block.forward(z, *_norm(theta, block))
        return self._logits(h, theta).sum(0)

    def plain(
        self,
        theta: Float[Tensor, "K P"],
        x: Float[Tensor, "K B C H W"],
        labels: Labels | StackedLabels,
        *,
        batch: int,
        out: Float[Tensor, "K P"],
        accumulate: bool,
        keep: list[Tensor] | None = None,
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "_ K B classes"]]:
        """One plain step (1)-(7) on a part of a batch of `batch` images.

        Args:
            out: gradients `[K, P]`, zero in the convolutions' biases (4); assigned, or added to with `accumulate`.
            keep: receives the later blocks' convolution outputs, for :meth:`adjoint`.

        Returns:
            This part's share of the mean loss `[K]`, and its logits `[parts, K, B, classes]`, to be added up.
        """
        precision = self.precision
        h, first_stats = self.first.forward(x, theta, self.where, precision=precision)
        visits = []
        for block, w in zip(self.later, self._weights(theta), strict=True):
            z = self.ops.conv.forward(h, w, precision=precision)
            o, stats = self.ops.block.forward(z, *_norm(theta, block))
            visits.append((block, h, w, z, stats))
            if keep is not None:
                keep.append(z)
            h = o
        u = self._logits(h, theta)
        losses, gu = self.ops.head.loss(u, labels, batch, labels_are=self.labels_are)
        go = self.ops.classifier.backward(
            gu, h, theta, out, self.classifier, precision=precision, accumulate=accumulate
        )
        while visits:
            block, h, w, z, stats = visits.pop()
            gz = self.ops.block.backward(
                z, stats, *_norm(theta, block), go, out, block.g, block.b, accumulate=accumulate
            )
            del z, stats
            self.ops.conv.weight_grad(h, gz, out, block.w, precision=precision, accumulate=accumulate)
            go = self.ops.conv.data_grad(gz, w, precision=precision)
        self.first.backward(x, theta, first_stats, go, self.where, out, precision=precision, accumulate=accumulate)
        return losses, u

    def adjoint(
        self,
        theta: Float[Tensor, "K P"],
        v: Float[Tensor, "K P"],
        x: Float[Tensor, "K B C H W"],
        labels: Labels,
        *,
        batch: int,
        out: Float[Tensor, "K P"],
        accumulate: bool,
        kept: list[Tensor] | None,
        wants: Wants,
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K B C H W"] | None, Float[Tensor, "B classes"] | None]:
        """The tangent pass along `v` (8)-(10) and the pass back through it (11)-(19), (24)-(27).

        Args:
            out: `d phi / d theta` `[K, P]`; holds nothing of use unless `wants.theta`.
            kept: what :meth:`plain` kept for the same images, or None to compute it again.

        Returns:
            This part's share of phi `[K]`, `d phi / d x` `[K, B, C, H, W]` (or None), and `d phi / d y` of the part
            `[B, classes]` summed over K (or None).
        """
        ops, precision = self.ops, self.precision
        h, hd, first_stats = self.first.tangent(x, theta, v, self.where, precision=precision)
        h, hd, visits = self._tangents(theta, v, h, hd, kept)
        classes = self.config.classes
        u, ud = ops.classifier.tangent_logits(h, hd, theta, v, self.classifier, classes, precision=precision)
        phi, gu, gud, gy = ops.head.adjoint(u, ud, labels, batch, labels_are=self.labels_are, wants_labels=wants.labels)
        go, god = ops.classifier.backward_dual(
            gu,
            gud,
            h,
            hd,
            theta,
            v,
            out if wants.theta else None,
            self.classifier,
            precision=precision,
            accumulate=accumulate,
        )
        while visits:
            visit = visits.pop()
            block = visit.block
            gz, gzd = ops.block.adjoint(
                visit.z,
                visit.zd,
                visit.stats,
                *_norm(theta, block),
                *_norm(v, block),
                go,
                god,
                out,
                block.g,
                block.b,
                accumulate=accumulate,
            )
            if wants.theta:
                ops.conv.weight_grad_dual(
                    visit.h, visit.hd, gz, gzd, out, block.w, precision=precision, accumulate=accumulate
                )
            go, god = ops.conv.data_grad_dual(gz, gzd, visit.w, visit.v, precision=precision)
            del visit, gz, gzd
        gx = None
        if wants.theta or wants.images:
            gx = self.first.adjoint(
                x,
                theta,
                v,
                first_stats,
                go,
                god,
                self.where,
                out,
                precision=precision,
                accumulate=accumulate,
                wants_images=wants.images,
            )
        return phi, gx, gy

    def _tangents(
        self, theta: Tensor, v: Tensor, h: Tensor, hd: Tensor, kept: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, list[_Visit]]:
        """(8)-(10) through the later blocks: the last one's outputs, and what their way back needs."""
        visits = []
        weights = zip(self._weights(theta), self._weights(v), strict=True)
        for index, (block, (w, direction)) in enumerate(zip(self.later, weights, strict=True)):
            known = None if kept is None else kept[index]
            z, zd = self.ops.conv.tangent(h, hd, w, direction, precision=self.precision, with_primal=known is None)
            z = z if known is None else known
            assert z is not None  # either kept or asked for
            o, od, stats = self.ops.block.tangent(z, zd, *_norm(theta, block), *_norm(v, block))
            visits.append(_Visit(block, h, hd, w, direction, z, zd, stats))
            h, hd = o, od
        return h, hd, visits

    def kept_bytes(self, trajectories: int, images: int, element: int) -> int:
        """Size of what :meth:`plain` keeps for that many images, with elements of that many bytes."""
        return trajectories * images * element * sum(block.side**2 * block.outputs for block in self.later)

    def working_bytes(self, trajectories: int, images: int, element: int) -> int:
        """About the largest number of bytes of activations an adjoint has alive at once.

        The tangent pass ends with every block's two inputs and two convolution outputs. The way back starts there, with
        four more maps of the largest later block.
        """
        maps = sum((2 * block.inputs + 2 * block.outputs) * block.side**2 for block in self.later)
        largest = max((block.outputs * block.side**2 for block in self.later), default=0)
        first = 2 * self.config.width * self.config.map_sizes[1] ** 2
        return trajectories * images * element * (maps + 4 * largest + first)

    def _weights(self, theta: Tensor) -> list[Filters]:
        """The later blocks' filters as the convolutions read them."""
        layers = [(block.w, block.inputs, block.outputs) for block in self.later]
        return self.ops.conv.pack_all(theta, layers, precision=self.precision)

    def _logits(self, h: Tensor, theta: Tensor) -> Tensor:
        return self.ops.classifier.logits(h, theta, self.classifier, self.config.classes, precision=self.precision)


class _ManyChannels:
    """The first block like any other, for images of more channels than its own kernels take."""

    def __init__(self, operations: Operations) -> None:
        self.ops = operations

    def forward(self, x: Tensor, theta: Tensor, where: Place, *, precision: str) -> tuple[Tensor, Statistics]:
        h, w = _channels_last(x), self._weight(theta, where, precision)
        z = self.ops.conv.forward(h, w, precision=precision)
        o, stats = self.ops.block.forward(z, *_norm(theta, where))
        return o, (z, stats)

    def tangent(
        self, x: Tensor, theta: Tensor, v: Tensor, where: Place, *, precision: str
    ) -> tuple[Tensor, Tensor, Statistics]:
        h, w, direction = _channels_last(x), self._weight(theta, where, precision), self._weight(v, where, precision)
        z = self.ops.conv.forward(h, w, precision=precision)
        zd = self.ops.conv.forward(h, direction, precision=precision)  # (8) with hd = 0
        o, od, stats = self.ops.block.tangent(z, zd, *_norm(theta, where), *_norm(v, where))
        return o, od, (z, zd, stats)

    def backward(
        self,
        x: Tensor,
        theta: Tensor,
        stats: Statistics,
        god: Tensor,
        where: Place,
        out: Tensor,
        *,
        precision: str,
        accumulate: bool = False,
    ) -> None:
        z, moments = stats
        norm = _norm(theta, where)
        gz = self.ops.block.backward(z, moments, *norm, god, out, where.g, where.b, accumulate=accumulate)
        self.ops.conv.weight_grad(_channels_last(x), gz, out, where.w, precision=precision, accumulate=accumulate)

    def adjoint(
        self,
        x: Tensor,
        theta: Tensor,
        v: Tensor,
        stats: Statistics,
        go: Tensor,
        god: Tensor,
        where: Place,
        out: Tensor,
        *,
        precision: str,
        accumulate: bool = False,
        wants_images: bool = True,
    ) -> Tensor | None:
        z, zd, moments = stats
        norms = (*_norm(theta, where), *_norm(v, where))
        gz, gzd = self.ops.block.adjoint(z, zd, moments, *norms, go, god, out, where.g, where.b, accumulate=accumulate)
        # (19) with hd = 0.
        self.ops.conv.weight_grad(_channels_last(x), gz, out, where.w, precision=precision, accumulate=accumulate)
        if not wants_images:
            return None
        w, direction = self._weight(theta, where, precision), self._weight(v, where, precision)
        gh, _ = self.ops.conv.data_grad_dual(gz, gzd, w, direction, precision=precision)
        return gh.permute(0, 1, 4, 2, 3)

    def _weight(self, theta: Tensor, where: Place, precision: str) -> Filters:
        return self.ops.conv.pack(theta, where.w, where.inputs, where.outputs, precision=precision)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 1, 3, 4, 2).contiguous()


def _norm(theta: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Scale and shift `[K, C]` of a block's norm, as views."""
    return theta[:, block.g : block.g + block.outputs], theta[:, block.b : block.b + block.outputs]
