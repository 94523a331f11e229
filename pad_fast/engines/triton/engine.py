"""`backend="triton"`: whole student steps and their adjoints on an NVIDIA GPU, for ConvNets with instance norm."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

import torch
from torch import Tensor

from ...data.augment import DSADraw, SeededDSA
from ...models import ConvNetConfig
from ...runtime.device import sent
from ...runtime.shapes import Float
from ..base import (
    Adjoint,
    Augment,
    Augmentation,
    Engine,
    Inputs,
    Labels,
    Passes,
    StackedLabels,
    Student,
    Task,
    Wants,
    contiguous_data,
)
from ..convnet_layout import config_of, refuse_network, require_batch
from . import verdicts
from .graphs import CudaRecorder, Graphs, Recorder, signature
from .kernel_forms import KernelDistance, KernelDSA, KernelGradientDistance, KernelUpdates, on
from .operations import Operations
from .steps import Steps

logger = logging.getLogger("pad_fast")

PRECISIONS = {"auto": "tf32", "tf32": "tf32", "ieee": "ieee", "bf16": "bf16"}
_ARITHMETIC = {
    "tf32": "convolutions of TF32 operands (10 bits of fraction), everything else in float32",
    "bf16": "convolutions of bfloat16 operands (7 bits of fraction), everything else in float32",
    "ieee": "everything in full precision",
}
_CAPABILITY = (8, 0)
# Activations that one step may have alive at once; larger batches go in parts, which changes only the order of sums.
# A part of this size keeps any GPU busy.
_WORKING_BYTES = 3 << 30
# Vectors `[P]` of a network in training: parameters, gradients, what the optimiser keeps, and a graph's own of them.
_VECTORS = 8

Result = TypeVar("Result")


class TritonEngine(Engine):
    """Batched Triton kernels for K trajectories at once, replayed as CUDA graphs.

    It serves ConvNets of pad_fast with instance norm, ReLU and average pooling, of any depth, width, class count,
    channel count and resolution. Precisions are "tf32" (the default, what torch's convolutions do), "ieee" and "bf16"
    for float32 tensors, and float64. The convolutions' biases cancel in the norm behind them, so their gradient is
    exactly 0 here, where torch leaves rounding noise.

    When memory runs out, the engine says so once and goes on with no kept activations, then with half as many images
    at a time, and so on; it remembers that for the network.

    Args:
        operations: what steps are made of; the Triton kernels when None.
        recorder: records work on any device; CUDA graphs on CUDA devices when None.
        objection: says why `backend="auto"` should not take this engine on a device, or None; what a check of the card
            has found when None (:mod:`pad_fast.engines.triton.verdicts`).

    Environment:
        PAD_FAST_GRAPHS=0 starts every kernel by itself.
    """

    name = "triton"

    def __init__(
        self,
        operations: Operations | None = None,
        *,
        recorder: Callable[[torch.device], Recorder] | None = None,
        objection: Callable[[torch.device], str | None] | None = None,
    ) -> None:
        self._given = operations
        self._operations = operations
        self._records_anywhere = recorder is not None
        self._objection = objection
        self.graphs = Graphs(CudaRecorder if recorder is None else recorder)
        self.distance = KernelDistance(lambda: self.operations)
        self.gradient_distance = KernelGradientDistance(lambda: self.operations)
        self.updates = KernelUpdates(lambda: self.operations)
        self._limits: dict[Hashable, _Limit] = {}
        self._said: set[str] = set()

    @property
    def operations(self) -> Operations:
        """The operations; the first look imports Triton."""
        if self._operations is None:
            self._operations = Operations()
        return self._operations

    def refuse(self, task: Task) -> str | None:
        """Says which of device, dtype, precision or network it does not serve."""
        reason = None if self._given is not None else _refuse_device(task.device)
        if reason is not None:
            return reason
        if task.dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 and float64, not {task.dtype}"
        if task.precision not in PRECISIONS:
            return f"its precisions are {', '.join(PRECISIONS)}, not {task.precision!r}"
        if task.dtype == torch.float64 and task.precision not in ("auto", "ieee"):
            return f"float64 is computed in float64 (precision='ieee'), not {task.precision}"
        return refuse_network(task)

    def hesitate(self, task: Task) -> str | None:
        """On a CPU its kernels are interpreted, which is for tests; a card has to pass a check first."""
        if self._objection is not None:
            return self._objection(task.device)
        if task.device.type == "cuda":
            return verdicts.objection(task.device)
        return "on a CPU its kernels would be interpreted"

    def student(self, task: Task) -> Student:
        """A run that keeps `task.cache_bytes` of activations between the passes."""
        return _TritonStudent(self, task)

    def arithmetic(self, task: Task) -> str:
        """The operands of the convolutions; sums are float32 in all three."""
        return _ARITHMETIC[_precision_of(task)]

    def augmentation(
        self, task: Task, augment: Augment, *, sizes: Sequence[int], images: Float[Tensor, "N ..."]
    ) -> Augmentation | None:
        """DSA with a seed is drawn and applied by kernels; any other callable is recorded by autograd."""
        if not isinstance(augment, SeededDSA) or augment.augmentation.mode != "fast":
            return None
        return KernelDSA(self.operations.augment, augment, sizes, images)

    def passes(self, task: Task, make: Callable[[Task], Passes], key: Hashable | None, inputs: Inputs) -> Passes:
        """Recorded passes, where the device records and everything the run does is known."""
        if key is None or not self._records(task):
            return make(task)
        whole = (_kind(task), task.gradient, task.cache_bytes > 0, self._limit(task).found, key, signature(inputs))
        # With "auto" the number of bytes changes from call to call: it is no part of the key, the first one counts.
        cache = self.graphs.first(whole, task.cache_bytes)
        return self.graphs.passes(whole, lambda: make(replace(task, cache_bytes=cache)), task.device)

    def loss_grad_logits(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"], Float[Tensor, "B classes"]]:
        """One plain step."""
        losses, gradients, logits = self.stacked_loss_grad_logits(task, theta[None], images[None], labels[None])
        return losses[0], gradients[0], logits[0]

    def stacked_loss_grad_logits(
        self, task: Task, theta: Float[Tensor, "K P"], images: Float[Tensor, "K B ..."], labels: StackedLabels
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K P"], Float[Tensor, "K B classes"]]:
        """One plain step of K networks in the launches of one."""

        def work(theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            losses, gradients, logits = self._gradient(task, theta, images, labels)
            return losses, gradients, _joined([u.sum(0) for u in logits], 1)

        require_batch(task, theta, images, labels)
        inputs = (contiguous_data(theta), images.detach(), labels.detach())
        if self._records(task):
            key = ("step", _kind(task), self._limit(task).found)
            losses, gradients, logits = self.graphs.call(key, work, inputs, task.device)
        else:
            losses, gradients, logits = work(*inputs)
        return losses, gradients, logits

    def forward(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B classes"]:
        """Logits `[B, classes]`."""
        return self.stacked_forward(task, theta[None], images[None])[0]

    def stacked_forward(
        self, task: Task, theta: Float[Tensor, "K P"], images: Float[Tensor, "K B ..."]
    ) -> Float[Tensor, "K B classes"]:
        """Logits `[K, B, classes]` of K networks in the launches of one."""
        require_batch(task, theta, images)
        steps, theta, images = self._steps(task), contiguous_data(theta), images.detach()

        def run() -> Tensor:
            return _joined([steps.logits(theta, piece) for piece in images.split(self._part(task, images), 1)], 1)

        return self._within_memory(task, run)

    def together(self, task: Task, batch: int) -> int:
        """As many as keep a GPU busy, which is as many as a step takes without going in parts."""
        size = task.dtype.itemsize
        activations = self._steps(task).working_bytes(1, batch, size)
        return max(1, _WORKING_BYTES // (activations + _VECTORS * task.network.parameter_count * size))

    def augment_each(self, images: Float[Tensor, "K B C H W"], draws: Sequence[DSADraw]) -> Float[Tensor, "K B C H W"]:
        """One launch, whatever the networks drew."""
        augment = self.operations.augment
        table = sent(augment.table_of(draws, images.shape[1]), images.device)
        with on(images.device):
            return augment.apply(images, table)

    def _steps(self, task: Task) -> Steps:
        return Steps(self.operations, config_of(task), _precision_of(task), task.labels_are)

    def _records(self, task: Task) -> bool:
        if os.environ.get("PAD_FAST_GRAPHS") == "0":
            return False
        return self._records_anywhere or task.device.type == "cuda"

    def _gradient(
        self,
        task: Task,
        theta: Float[Tensor, "K P"],
        images: Float[Tensor, "K B C H W"],
        labels: Labels | StackedLabels,
        *,
        out: Float[Tensor, "K P"] | None = None,
        keep: Callable[[], list[Tensor] | None] = lambda: None,
        restart: Callable[[], None] = lambda: None,
        forget: Callable[[], bool] | None = None,
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K P"], list[Float[Tensor, "_ K _ classes"]]]:
        """Losses `[K]`, gradients `[K, P]`, and the logits of every part of the batch as :meth:`Steps.plain` has them.

        Args:
            images: `[K, B, C, H, W]`, which may be expanded over K.
            labels: of each trajectory `[K, B, ..]`, or of all `[B, ..]`.
            out: receives the gradients; its entries for the convolutions' biases are zero, and stay so.
            keep: called for every part of the batch; a list that receives its activations, or None.
            restart: called ahead of the first part, also when memory ran out and everything begins again.
            forget: see :meth:`_within_memory`.
        """
        steps = self._steps(task)
        gradients = torch.zeros_like(theta) if out is None else out

        def run() -> tuple[Tensor, Tensor, list[Tensor]]:
            restart()
            shares: list[Tensor] = []
            logits: list[Tensor] = []
            size = self._part(task, images)
            for x, y in zip(images.split(size, 1), labels.split(size, _batch_axis(labels)), strict=True):
                share, u = steps.plain(
                    theta, x, y, batch=images.shape[1], out=gradients, accumulate=bool(shares), keep=keep()
                )
                shares.append(share)
                logits.append(u)
            return _sum(shares), gradients, logits

        return self._within_memory(task, run, forget)

    def _part(self, task: Task, images: Tensor) -> int:
        """Images `[K, B, ..]` at a time: as many as memory allows, in parts of nearly equal size."""
        limit, (trajectories, batch) = self._limit(task), images.shape[:2]
        fitting = max(1, _WORKING_BYTES // self._steps(task).working_bytes(trajectories, 1, images.element_size()))
        if limit.images is not None:
            fitting = min(fitting, limit.images)
        count = -(-batch // fitting)
        limit.latest = -(-batch // count)
        return limit.latest

    def _limit(self, task: Task) -> _Limit:
        return self._limits.setdefault(_kind(task), _Limit())

    def _within_memory(self, task: Task, run: Callable[[], Result], forget: Callable[[], bool] | None = None) -> Result:
        """`run()`, again with less and less memory while there is too little.

        Args:
            forget: gives up what was kept of other steps, and says whether there was anything.
        """
        while True:
            try:
                with on(task.device):
                    return run()
            except torch.OutOfMemoryError:
                # While recording, only starting afresh helps, and whoever records does so.
                if self.graphs.recording or not self._make_do(task, forget):
                    raise
            if task.device.type == "cuda":
                torch.cuda.empty_cache()

    def _make_do(self, task: Task, forget: Callable[[], bool] | None) -> bool:
        """Ask for less memory from now on; whether that is possible."""
        limit = self._limit(task)
        if self.graphs.clear():
            self._say("GPU memory ran out: recorded CUDA graphs are given up")
            return True
        if forget is not None and forget():
            limit.keeps = False
            self._say("GPU memory ran out: activations are computed again instead of kept (cache=0)")
            return True
        if limit.latest is None or limit.latest <= 1:
            return False
        limit.images = limit.latest // 2
        self._say(f"GPU memory ran out: batches are taken in parts of at most {limit.images} images")
        return True

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)


class _Limit:
    """Limits that a network was found to fit into memory with.

    Attributes:
        images: at a time, None as long as there was room for everything.
        latest: images at a time of the latest step.
        keeps: whether activations may be kept.
    """

    def __init__(self) -> None:
        self.images: int | None = None
        self.latest: int | None = None
        self.keeps = True

    @property
    def found(self) -> tuple[int | None, bool]:
        """What steps go by: work in other parts launches other kernels, and is to run plainly before it is recorded."""
        return self.images, self.keeps


class _TritonStudent(Student):
    random = False

    def __init__(self, engine: TritonEngine, task: Task) -> None:
        self.engine, self.task = engine, task
        self.steps = engine._steps(task)
        self.left = task.cache_bytes if engine._limit(task).keeps else 0
        self.kept: dict[int, _Kept] = {}  # by step
        # Written by every step in turn. Biases of convolutions are never written and stay zero.
        self.gradients: Tensor | None = None
        self.pulled: Tensor | None = None

    def gradient(
        self, step: int, theta: Float[Tensor, "K P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> Float[Tensor, "K P"]:
        require_batch(self.task, theta, images, labels)
        size = self.steps.kept_bytes(len(theta), len(images), images.element_size())
        images = _stacked(contiguous_data(images), len(theta))

        def restart() -> None:
            given = self.kept.pop(step, None)
            if given is not None:
                self.left += given.bytes
            if 0 < size <= self.left:
                self.left -= size
                self.kept[step] = _Kept(size, [])

        def keep() -> list[Tensor] | None:
            if step not in self.kept:
                return None
            self.kept[step].parts.append([])
            return self.kept[step].parts[-1]

        if self.gradients is None:
            self.gradients = torch.zeros_like(theta)
        _, gradients, _ = self.engine._gradient(
            self.task, theta, images, labels, out=self.gradients, keep=keep, restart=restart, forget=self._forget
        )
        return gradients

    def adjoint(
        self,
        step: int,
        theta: Float[Tensor, "K P"],
        direction: Float[Tensor, "K P"],
        images: Float[Tensor, "B ..."],
        labels: Labels,
        wants: Wants,
    ) -> Adjoint:
        require_batch(self.task, theta, images, labels)
        trajectories, direction = len(theta), contiguous_data(direction)
        images = _stacked(contiguous_data(images), trajectories)
        if self.pulled is None:
            self.pulled = torch.zeros_like(theta)
        out = self.pulled

        def run() -> Adjoint:
            kept = self.kept.get(step)
            size = self.engine._part(self.task, images)
            if kept is not None and (not kept.parts or kept.parts[0][0].shape[1] != size):
                kept = None  # kept in parts of another size
            phis, for_images, for_labels = [], [], []
            for index, (x, y) in enumerate(zip(images.split(size, 1), labels.split(size), strict=True)):
                phi, gx, gy = self.steps.adjoint(
                    theta,
                    direction,
                    x,
                    y,
                    batch=images.shape[1],
                    out=out,
                    accumulate=index > 0,
                    kept=None if kept is None else kept.parts[index],
                    wants=wants,
                )
                phis.append(phi)
                if gx is not None:
                    for_images.append(gx[0] if trajectories == 1 else gx.sum(0))
                if gy is not None:
                    for_labels.append(gy)
            return Adjoint(
                _sum(phis),
                out if wants.theta else None,
                _joined(for_images, 0) if wants.images else None,
                _joined(for_labels, 0) if for_labels else None,
            )

        return self.engine._within_memory(self.task, run, self._forget)

    def _forget(self) -> bool:
        kept, self.left = bool(self.kept), 0
        self.kept.clear()
        return kept


class _Kept:
    """Activations of one step, part by part."""

    def __init__(self, size: int, parts: list[list[Tensor]]) -> None:
        self.bytes, self.parts = size, parts


def chosen_convolutions() -> dict[str, dict[str, object]]:
    """The routes of convolutions that were chosen by measurement and used in this process, by operation and layer."""
    if "pad_fast.kernels.conv.cudnn" not in sys.modules:  # nothing was computed by kernels
        return {}
    from ...kernels.conv.choices import key_of
    from ...kernels.conv.cudnn import choices

    return {key_of(op, layer): asdict(choice) for (op, layer), choice in choices().items()}


def _precision_of(task: Task) -> str:
    return "ieee" if task.dtype == torch.float64 else PRECISIONS[task.precision]


def _refuse_device(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda":
        # Imported here because Triton decides when it is imported whether it interprets.
        from ...kernels.launch import interpreted

        if device.type == "cpu" and interpreted():
            return None
        return f"it needs a CUDA device (or TRITON_INTERPRET=1 from the start), and the tensors are on {device}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, _CAPABILITY))
        return f"{torch.cuda.get_device_name(device)} has compute capability {have}; {need} is needed"
    return None


def _kind(task: Task) -> tuple[ConvNetConfig, torch.dtype, str, torch.device, str]:
    return config_of(task), task.dtype, task.precision, task.device, task.labels_are


def _stacked(x: Tensor, trajectories: int) -> Tensor:
    return x[None].expand(trajectories, *x.shape)


def _batch_axis(labels: Tensor) -> int:
    """Behind the trajectories where labels have them."""
    return labels.dim() - (2 if labels.is_floating_point() else 1)


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
