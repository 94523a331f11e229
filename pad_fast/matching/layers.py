"""How far the student lands from the expert, layer by layer: what PAD's figure 5 shows over the iterations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..engines import Augment, Task, select
from ..models.flat import FlatNetwork
from ..runtime.shapes import Float, Int
from .replay import TURN


def layer_distances(
    network: FlatNetwork,
    theta_end: Float[Tensor, " P"],
    theta_start: Float[Tensor, " P"],
    theta_target: Float[Tensor, " P"],
) -> dict[str, float]:
    r"""`sum (theta_T - theta*)^2 / sum (theta_s - theta*)^2` over the parameters of each layer.

    Every layer has a denominator of its own, so 1 means as far from the expert as at the start, whatever the layer's
    size. No mask applies: the layers that FIEm leaves out of the loss are measured as well.

    Args:
        network: says where its layers begin, see :meth:`FlatNetwork.layer_starts`.
        theta_end: where the student landed `[P]`.
        theta_start, theta_target: the expert's snapshots it started from and should land on, `[P]`.

    Returns:
        Layer name (the module's) to distance, shallow to deep. A layer whose expert did not move, or whose student
        ran away to infinity, is left out.
    """
    starts = network.layer_starts()
    names = dict(zip(accumulate(network.sizes, initial=0), network.names, strict=False))
    ends = [*starts[1:], network.parameter_count]
    reached, required = (theta_end - theta_target).square(), (theta_start - theta_target).square()
    sums = [torch.stack([reached[a:b].sum(), required[a:b].sum()]) for a, b in zip(starts, ends, strict=True)]
    numerators, denominators = torch.stack(sums).double().unbind(1)
    distances = zip(starts, (numerators / denominators).tolist(), strict=True)
    return {names[start].rpartition(".")[0]: value for start, value in distances if math.isfinite(value)}


def student_end(
    network: FlatNetwork,
    theta_start: Float[Tensor, " P"],
    images: Float[Tensor, "N ..."],
    labels: Float[Tensor, "N classes"] | Int[Tensor, " N"],
    lr: Float[Tensor, ""],
    *,
    batches: Sequence[Int[Tensor, " _"]],
    augment: Augment | None = None,
    backend: str = "auto",
    precision: str = "auto",
) -> Float[Tensor, " P"]:
    """Where a student lands that :func:`pad_fast.trajectory_matching_loss` would train, `theta_T` `[P]`.

    Plain steps, of which nothing is kept. The network's buffers and torch's generators are left as they were, so a run
    that looks stays the run that does not look.

    Args: those of :func:`pad_fast.trajectory_matching_loss`.
    """
    task = Task(network, images.device, images.dtype, "exact", precision)
    engine = select(backend, task)
    student = engine.student(task)
    devices = [images.device] if images.device.type == "cuda" else []
    theta = theta_start[None]
    own = network.with_buffers({name: buffer.detach().clone() for name, buffer in network.buffers()})
    with TURN, torch.no_grad(), torch.random.fork_rng(devices=devices), own, engine.running():
        for step, batch in enumerate(batches):
            batch = batch.to(images.device)
            inputs = images[batch] if augment is None else augment(images[batch], step)
            theta = theta - lr * student.gradient(step, theta, inputs, labels[batch])
    return theta[0]
