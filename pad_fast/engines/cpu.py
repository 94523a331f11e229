"""`backend="cpu"`: whole student steps and their adjoints in C++, for ConvNets with instance norm."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError
from ..models import ConvNetConfig
from ..runtime import extension
from ..runtime.shapes import Float
from .base import Adjoint, Engine, FeaturePullback, Labels, Student, Task, Wants, contiguous_data
from .convnet_layout import blocks_of, config_of, refuse_network, require_batch

# What they mean is decided in csrc/unroll/bindings.cpp. "fast" was F(4x4) when "high" was not.
_PRECISIONS = {"auto": "high", "high": "high", "highest": "highest", "fast": "high"}
_ARITHMETIC = {
    "high": "F(4x4) convolutions, errors up to 3 times torch's float32",
    "highest": "F(2x2) convolutions, errors of torch's float32",
}
_DTYPES = {torch.float32: "f32", torch.float64: "f64"}
# A plan holds workspaces (tens of MB for the published networks); a run uses one or two.
_PLANS_KEPT = 4
# Below this many multiplications in a batch's convolutions a step takes well under a millisecond, and waking a second
# thread costs more than it gains, above all on a machine that is busy with other things.
_SINGLE_THREAD_WORK = 20_000_000
# Up to so many images it matters for the choice of tiles how many there are: a plan for every power of two.
_FEW_IMAGES = 32


class _Outside:
    """Torch's number of threads outside :meth:`CpuEngine.running`, whoever is inside."""

    def __init__(self) -> None:
        self.threads: int | None = None
        self._lock, self._inside, self._here = threading.Lock(), 0, threading.local()

    @contextmanager
    def left(self) -> Iterator[None]:
        """Torch has one thread inside. In most builds that is a setting of the process, in some one of each thread."""
        if getattr(self._here, "inside", False):
            yield
            return
        with self._lock:
            if not self._inside:
                self.threads = torch.get_num_threads()
            before = self.threads
            self._inside += 1
        assert before is not None
        self._here.inside = True
        torch.set_num_threads(1)
        try:
            yield
        finally:
            self._here.inside = False
            with self._lock:
                # Also where others are still inside: they only get slower, and nobody keeps the one thread for good.
                torch.set_num_threads(before)
                self._inside -= 1
                if not self._inside:
                    self.threads = None


_outside = _Outside()


class CpuEngine(Engine):
    """The native engine. Gradients agree with autograd to rounding; nothing but one group of images is ever stored.

    It serves ConvNets of pad_fast with instance norm, ReLU and average pooling, in float32 and float64, any depth,
    width, class count, channel count and resolution. The convolutions' biases cancel in the norm behind them, so
    their gradient is exactly 0 here, where torch leaves rounding noise.
    """

    name = "cpu"
    side_by_side = True

    def __init__(self) -> None:
        self._kept = threading.local()

    def running(self) -> AbstractContextManager[None]:
        """Torch's own operations use one thread meanwhile.

        Between two steps they touch a few vectors. On several threads, OpenMP's workers would go on spinning after each
        of them and take the cores from the engine's (28 instead of 19 ms a step at batch 10 on 2 cores).
        """
        return _outside.left()

    def refuse(self, task: Task) -> str | None:
        """Says which of device, dtype, network or precision it does not serve."""
        if task.device.type != "cpu":
            return f"the tensors are on {task.device}"
        if not extension.available():
            return f"the compiled extension is missing ({extension.unavailable_reason()})"
        if task.dtype not in _DTYPES:
            return f"it computes in float32 and float64, not {task.dtype}"
        if task.precision not in _PRECISIONS:
            return f"its precisions are {', '.join(_PRECISIONS)}, not {task.precision!r}"
        return refuse_network(task)

    def arithmetic(self, task: Task) -> str:
        """The tiles of the convolutions; float64 has no error worth a word."""
        return _ARITHMETIC[_PRECISIONS[task.precision]] if task.dtype == torch.float32 else ""

    def student(self, task: Task) -> Student:
        """A run that keeps `task.cache_bytes` of activations between the passes."""
        return _NativeStudent(self, task)

    def loss_grad_logits(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"], Float[Tensor, "B classes"]]:
        """One plain step, and what it computes on the way."""
        require_batch(task, theta, images, labels)
        theta, images, labels = contiguous_data(theta), contiguous_data(images), contiguous_data(labels)
        gradient = torch.empty_like(theta)
        logits = images.new_empty(len(images), config_of(task).classes)
        loss = self.plan(task, len(images)).native.loss_and_grad(
            theta=theta.data_ptr(),
            x=images.data_ptr(),
            batch=len(images),
            labels=labels.data_ptr(),
            kind=_kind(task, labels),
            grad=gradient.data_ptr(),
            logits=logits.data_ptr(),
        )
        return torch.tensor(loss, dtype=theta.dtype), gradient, logits

    def forward(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B classes"]:
        """Logits `[B, classes]`."""
        require_batch(task, theta, images)
        theta, images = contiguous_data(theta), contiguous_data(images)
        config = config_of(task)
        logits = images.new_empty(len(images), config.classes)
        self.plan(task, len(images)).native.forward(
            theta=theta.data_ptr(), x=images.data_ptr(), batch=len(images), logits=logits.data_ptr()
        )
        return logits

    def mean_features(
        self,
        task: Task,
        theta: Float[Tensor, " P"],
        images: Sequence[Float[Tensor, "_ ..."]],
        blocks: Sequence[int] | None,
    ) -> list[Float[Tensor, "G _"]]:
        """Forward passes alone, one group at a time, of the network cut off behind each of the blocks."""
        found = []
        for config in _cut_off(task, blocks, len(images)):
            parameters = _with_classifier(config, theta, None)
            side = config.map_sizes[-1]
            means = []
            for x in images:
                x = contiguous_data(x)
                features = x.new_empty(len(x), config.width * side * side)
                self.plan(task, len(x), config).native.forward(
                    theta=parameters.data_ptr(), x=x.data_ptr(), batch=len(x), features=features.data_ptr()
                )
                means.append(features.mean(0))
            found.append(torch.stack(means))
        return found

    def mean_features_pullback(
        self, task: Task, theta: Float[Tensor, " P"], images: Float[Tensor, "G B ..."], blocks: Sequence[int] | None
    ) -> tuple[list[Float[Tensor, "G _"]], FeaturePullback]:
        """The way back is the adjoint of a step whose gradient is linear in the features.

        The network gets a classifier of G + 1 rows of zeros, and an image of group g the "probabilities" -1 for class g
        and +1 for the last class, which add up to 0. Then the gradient in the logits is (e_g - e_last) / GB whatever
        the features h are, and the gradient in row g of the classifier is the sum of the group's h over GB. Along a
        direction whose row g is G v_g and whose last row is 0, phi = sum_g <v_g, mean h of g>: its derivative in the
        images is what is asked for, of all groups in one call.
        """
        groups, size = images.shape[:2]
        x = contiguous_data(images).flatten(0, 1)
        labels = x.new_zeros(groups, size, groups + 1)
        labels[..., -1] = 1
        labels[torch.arange(groups), :, torch.arange(groups)] = -1

        def pull(directions: Sequence[Tensor]) -> Tensor:
            total = torch.zeros_like(x)
            for config, v in zip(_cut_off(task, blocks, groups), directions, strict=True):
                parameters = _with_classifier(config, theta, None)
                along = _with_classifier(config, torch.zeros_like(theta), groups * v)
                pulled, unused = torch.empty_like(x), torch.empty_like(parameters)
                self.plan(task, len(x), config).native.adjoint(
                    theta=parameters.data_ptr(),
                    v=along.data_ptr(),
                    x=x.data_ptr(),
                    batch=len(x),
                    labels=labels.data_ptr(),
                    kind="probabilities",
                    dtheta=unused.data_ptr(),
                    dx=pulled.data_ptr(),
                )
                total += pulled
            return total.view(images.shape)

        return self.mean_features(task, theta, list(images), blocks), pull

    def plan(self, task: Task, batch: int, config: ConvNetConfig | None = None) -> _Plan:
        """The workspaces for the task's network, or for the one given.

        Made once by every thread that trains it, and kept while they are in use.
        """
        plans: OrderedDict[tuple[Any, ...], _Plan] | None = getattr(self._kept, "plans", None)
        if plans is None:
            plans = self._kept.plans = OrderedDict()
        config = config_of(task) if config is None else config
        threads = _outside.threads or torch.get_num_threads()
        if batch * _multiplications(config) < _SINGLE_THREAD_WORK:
            threads = 1
        isa = suited_isa(net_width=config.width, pixels=batch * config.map_sizes[1] ** 2)
        images = 1 << (batch - 1).bit_length() if batch <= _FEW_IMAGES else 0
        key = (config, task.dtype, _PRECISIONS[task.precision], threads, images, isa)
        if key not in plans:
            plans[key] = _Plan(
                make_plan(
                    channels=config.channels,
                    height=config.resolution,
                    width=config.resolution,
                    pad_first=config.first_padding,
                    depth=config.depth,
                    net_width=config.width,
                    classes=config.classes,
                    dtype=_DTYPES[task.dtype],
                    precision=_PRECISIONS[task.precision],
                    threads=threads,
                    images=images,
                    isa=isa,
                )
            )
            while len(plans) > _PLANS_KEPT:
                plans.popitem(last=False)
        plans.move_to_end(key)
        return plans[key]


class _Plan:
    """A native plan, and the activation caches that earlier runs have given back."""

    def __init__(self, plan: Any) -> None:
        self.native = plan
        self.free: list[Any] = []


class _NativeStudent(Student):
    random = False

    def __init__(self, engine: CpuEngine, task: Task) -> None:
        self.engine, self.task = engine, task
        self.left = task.cache_bytes
        self.caches: dict[tuple[int, int], tuple[_Plan, Any]] = {}  # (step, trajectory) -> activations
        # Memory that was touched once is far cheaper than new memory, so the next run gets these.
        weakref.finalize(self, _give_back, self.caches)

    def gradient(
        self, step: int, theta: Float[Tensor, "K P"], images: Float[Tensor, "B ..."], labels: Labels
    ) -> Float[Tensor, "K P"]:
        require_batch(self.task, theta, images, labels)
        images, labels = contiguous_data(images), contiguous_data(labels)
        plan = self.engine.plan(self.task, len(images))
        gradient = torch.empty_like(theta)
        for index, row in enumerate(theta):
            row = contiguous_data(row)
            plan.native.loss_and_grad(
                theta=row.data_ptr(),
                x=images.data_ptr(),
                batch=len(images),
                labels=labels.data_ptr(),
                kind=_kind(self.task, labels),
                grad=gradient[index].data_ptr(),
                cache=self._new_cache(plan, step, index, len(images)),
            )
        return gradient

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
        images, labels = contiguous_data(images), contiguous_data(labels)
        plan = self.engine.plan(self.task, len(images))
        # The pull-back to theta shares all its work with phi itself, so it is computed either way.
        pulled = torch.empty_like(theta)
        phi = theta.new_empty(len(theta))
        image_sum: Tensor | None = None
        label_sum: Tensor | None = None
        for index, (row, v) in enumerate(zip(theta, direction, strict=True)):
            row, v = contiguous_data(row), contiguous_data(v)
            # Used once: a graph that was retained is pulled back again without.
            owner, cache = self.caches.pop((step, index), (plan, None))
            for_images = torch.empty_like(images) if wants.images else None
            for_labels = torch.empty_like(labels) if wants.labels else None
            phi[index] = plan.native.adjoint(
                theta=row.data_ptr(),
                v=v.data_ptr(),
                x=images.data_ptr(),
                batch=len(images),
                labels=labels.data_ptr(),
                kind=_kind(self.task, labels),
                dtheta=pulled[index].data_ptr(),
                dx=0 if for_images is None else for_images.data_ptr(),
                dy=0 if for_labels is None else for_labels.data_ptr(),
                cache=cache,
            )
            if cache is not None:
                owner.free.append(cache)
            if for_images is not None:
                image_sum = for_images if image_sum is None else image_sum + for_images
            if for_labels is not None:
                label_sum = for_labels if label_sum is None else label_sum + for_labels
        return Adjoint(phi, pulled if wants.theta else None, image_sum, label_sum)

    def _new_cache(self, plan: _Plan, step: int, index: int, batch: int) -> Any:
        """Room for one step's activations, as long as the budget lasts."""
        size = plan.native.cache_bytes(batch)
        if size > self.left:
            return None
        self.left -= size
        cache = plan.free.pop() if plan.free else plan.native.make_cache()
        self.caches[step, index] = plan, cache
        return cache


def _give_back(caches: dict[tuple[int, int], tuple[_Plan, Any]]) -> None:
    for plan, cache in caches.values():
        plan.free.append(cache)


def _cut_off(task: Task, blocks: Sequence[int] | None, groups: int) -> list[ConvNetConfig]:
    """The network up to each of those depths, with a classifier of `groups + 1` classes."""
    config = config_of(task)
    depths = (config.depth,) if blocks is None else blocks
    return [replace(config, depth=depth, classes=groups + 1) for depth in depths]


def _with_classifier(config: ConvNetConfig, theta: Tensor, rows: Tensor | None) -> Tensor:
    """The blocks' parameters out of `theta` `[P]`, and a classifier of these rows above one of zeros, or of zeros."""
    _, start = blocks_of(config)
    features = config.width * config.map_sizes[-1] ** 2
    vector = theta.new_zeros(start + config.classes * (features + 1))
    vector[:start] = theta[:start]
    if rows is not None:
        vector[start : start + rows.numel()] = rows.reshape(-1)
    return vector


def _multiplications(config: ConvNetConfig) -> int:
    """Of the convolutions of one forward pass of one image."""
    total, channels = 0, config.channels
    for side in config.map_sizes[:-1]:
        total += side * side * channels * config.width * 9
        channels = config.width
    return total


def _kind(task: Task, labels: Tensor) -> str:
    return task.labels_are if labels.is_floating_point() else "hard"


def make_plan(
    *,
    channels: int,
    height: int,
    width: int,
    pad_first: int,
    depth: int,
    net_width: int,
    classes: int,
    dtype: str,
    precision: str,
    threads: int,
    images: int = 0,
    isa: str = "auto",
) -> Any:
    """Workspaces and threads for student steps of one ConvNet, see `_C.pyi`; sizes are checked there.

    Args:
        images: how many a batch is expected to have, for which the arithmetic is chosen; 0 for many. Any number works.

    Raises:
        BackendError: the extension is not loaded, or PAD_FAST_ISA names an instruction set this machine lacks.
    """
    try:
        return extension.loaded().Plan(
            channels=channels,
            height=height,
            width=width,
            pad_first=pad_first,
            depth=depth,
            net_width=net_width,
            classes=classes,
            dtype=dtype,
            precision=precision,
            threads=threads,
            images=images,
            isa=isa,
        )
    except ValueError as error:
        raise BackendError(str(error)) from error


def suited_isa(*, net_width: int, pixels: int) -> str:
    """The instruction set that serves a student step soonest; PAD_FAST_ISA forces one.

    Args:
        net_width: channels of the network's maps.
        pixels: of the maps behind its first block, all images of the batch together.

    Raises:
        BackendError: the extension is not loaded, or PAD_FAST_ISA names an instruction set this machine lacks.
    """
    try:
        return str(extension.loaded().suited_isa(net_width=net_width, pixels=pixels))
    except ValueError as error:
        raise BackendError(str(error)) from error
