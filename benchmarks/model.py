"""A counted model of one distillation iteration on a GPU: launches, bytes and operations, without a GPU.

    python -m benchmarks.model
    python -m benchmarks.model --update docs/gpu_engine.md --json benchmarks/results/model.json

Ours is counted by running the engine's host code with every kernel left out (`pad_fast.kernels.launch.dry_run`), the
plain loop by watching every operator that torch is asked for. Both are linear in the number of steps, so two and three
steps give all of them; the plain loop's bytes are also linear in the batch, so small batches give large ones.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import harness
from benchmarks.rivals import plain_unroll
from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends, register
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.kernels import launch
from pad_fast.models import FlatNetwork

BANDWIDTH = 3.4e12
"""Bytes per second that kernels reach: four fifths of the 4.3 TB/s measured for a copy on an H200."""

MATRIX_RATE = 2.5e14
"""TF32 operations per second that convolutions reach: half of the data sheet's 495 TFLOP/s (H200 SXM, dense)."""

GRAPH_LAUNCH = 2e-6
"""Seconds that a kernel in a CUDA graph takes at least, with the gap to the next one."""

EAGER_LAUNCH = 6e-6
"""Seconds that an operator of eager torch takes at least, autograd included."""

BEGIN, END = "<!-- counted model: begin -->", "<!-- counted model: end -->"


@dataclass(frozen=True)
class Setting:
    """One of the published settings: T steps on batches of `batch` out of `images`."""

    name: str
    images: int
    batch: int
    steps: int
    classes: int = 10
    resolution: int = 32
    depth: int = 3
    width: int = 128

    def network(self) -> ConvNet:
        return ConvNet(width=self.width, depth=self.depth, resolution=self.resolution, classes=self.classes)


SETTINGS = (
    Setting("CIFAR-10 IPC 1", 10, 10, 80),
    Setting("CIFAR-10 IPC 10", 100, 100, 80),
    Setting("CIFAR-10 IPC 50", 500, 500, 80),
    Setting("CIFAR-10 IPC 500", 5000, 1000, 40),
    Setting("CIFAR-10 IPC 1000", 10000, 1000, 100),
    Setting("CIFAR-100 IPC 1", 100, 100, 40, 100),
    Setting("CIFAR-100 IPC 10", 1000, 1000, 80, 100),
    Setting("CIFAR-100 IPC 50", 5000, 1000, 80, 100),
    Setting("CIFAR-100 IPC 100", 10000, 1000, 80, 100),
    Setting("Tiny-ImageNet IPC 1", 200, 200, 40, 200, 64, 4),
    Setting("Tiny-ImageNet IPC 10", 2000, 500, 40, 200, 64, 4),
    Setting("Tiny-ImageNet IPC 50", 10000, 500, 20, 200, 64, 4),
)


@dataclass(frozen=True)
class Work:
    """One launch or operator."""

    name: str
    bytes: float
    flops: float

    def seconds(self, launching: float) -> float:
        """The longest of starting it, moving its bytes and computing it."""
        return max(launching, self.bytes / BANDWIDTH, self.flops / MATRIX_RATE)


@dataclass(frozen=True)
class Total:
    """Of one iteration."""

    launches: float
    bytes: float
    flops: float
    seconds: float

    @classmethod
    def of(cls, works: Iterable[Work], launching: float) -> Total:
        works = list(works)
        return cls(
            len(works),
            sum(work.bytes for work in works),
            sum(work.flops for work in works),
            sum(work.seconds(launching) for work in works),
        )

    def extrapolate(self, next_: Total, steps: int) -> Total:
        """From two steps (this) and three (`next_`) to `steps`."""
        two, three = vars(self), vars(next_)
        return Total(**{name: two[name] + (steps - 2) * (three[name] - two[name]) for name in two})


class Operators(TorchDispatchMode):
    """Writes down every operator that makes a device do something."""

    # Counted by those who call them, with what they really touch; see `pad_fast.kernels.launch.note`.
    noted = tuple("mm bmm addmm addmm_ baddbmm baddbmm_ convolution convolution_backward".split())
    # Only what they return counts as read.
    gathering = ("index_select", "index", "gather")
    # They reserve memory, or give another view of it.
    idle = tuple("empty new_empty empty_like empty_strided new_empty_strided detach alias lift_fresh".split())
    idle += ("_local_scalar_dense",)  # checks on indices in host memory

    def __init__(self, *, skip_noted: bool) -> None:
        super().__init__()
        self.skip = self.idle + (self.noted if skip_noted else ())
        self.works: list[Work] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        read, made = list(tensors((args, kwargs))), list(tensors(result))
        if any(tensor.is_meta for tensor in (*read, *made)):  # shapes without numbers, which no device sees
            return result
        if name in self.skip or function.is_view or (made and not name.endswith("_") and _shares(made, read)):
            return result
        size = sum(_bytes(tensor) for tensor in made)
        if name == "index_add_":
            size = 3 * _bytes(read[-1])
        elif name in self.gathering:
            size *= 2
        else:
            size += sum(_bytes(tensor) for tensor in read)
        count = flop_registry.get(function.overloadpacket)
        flops = float(count(*args, **kwargs, out_val=result)) if count is not None else 0.0
        self.works.append(Work(name, size, flops))
        return result


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors(value)


def _bytes(tensor: Tensor) -> int:
    """Bytes that are there once, however often they are expanded."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()


def _shares(made: list[Tensor], read: list[Tensor]) -> bool:
    memory = {tensor.untyped_storage().data_ptr() for tensor in read}
    return all(tensor.untyped_storage().data_ptr() in memory for tensor in made)


def ours(setting: Setting, steps: int, *, cache: int = 0, trajectories: int = 1) -> list[Work]:
    """Every launch of one iteration with DSA, depth mask and all gradients, in order."""
    module = setting.network()
    theta = FlatNetwork(module).initial()
    if trajectories > 1:
        theta = theta.repeat(trajectories, 1)
    images = torch.zeros(setting.images, 3, setting.resolution, setting.resolution, requires_grad=True)
    labels = torch.zeros(setting.images, setting.classes, requires_grad=True)
    lr = torch.tensor(0.01, requires_grad=True)
    batches = [torch.arange(setting.batch)] * steps
    operators = Operators(skip_noted=True)
    with record_backends() as used, launch.dry_run() as count, operators:
        loss = trajectory_matching_loss(
            module,
            theta,
            theta + 0.01,
            images,
            labels,
            lr,
            batches=batches,
            mask=ParameterMask.depth(0.5),
            augment=DSA().seeded(0),
            backend="triton",
            precision="tf32",
            cache=cache,
        )
        loss.backward(torch.ones_like(loss))
    if used != ["triton"]:
        raise SystemExit(f"counted on {used}")
    return [Work(name, cost.bytes, cost.flops) for name, cost in count.launches] + operators.works


def plain(setting: Setting, batch: int, steps: int) -> list[Work]:
    """Every operator of one iteration of the plain loop, without augmentation."""
    module = setting.network()
    theta = FlatNetwork(module).initial()
    images = torch.randn(batch, 3, setting.resolution, setting.resolution)
    labels, batches = torch.randn(batch, setting.classes), [torch.arange(batch)] * steps
    operators = Operators(skip_noted=False)
    with operators:
        plain_unroll(module, theta, theta + 0.01, images, labels, torch.tensor(0.01), batches)
    return operators.works


def plain_total(setting: Setting) -> Total:
    """The plain loop at the setting's own batch and number of steps."""
    by_steps = []
    for steps in (2, 3):
        small, large = plain(setting, 2, steps), plain(setting, 3, steps)
        if [work.name for work in small] != [work.name for work in large]:
            raise SystemExit("the plain loop's operators depend on the batch")
        grown = [
            Work(
                one.name,
                one.bytes + (setting.batch - 2) * (two.bytes - one.bytes),
                one.flops + (setting.batch - 2) * (two.flops - one.flops),
            )
            for one, two in zip(small, large, strict=True)
        ]
        by_steps.append(Total.of(grown, EAGER_LAUNCH))
    return by_steps[0].extrapolate(by_steps[1], setting.steps)


def our_total(setting: Setting, *, cache: int = 0) -> Total:
    """Ours at the setting's own batch and number of steps."""
    two, three = (Total.of(ours(setting, steps, cache=cache), GRAPH_LAUNCH) for steps in (2, 3))
    return two.extrapolate(three, setting.steps)


def row(setting: Setting) -> dict[str, Any]:
    """Both sides of one setting."""
    mine, other = our_total(setting), plain_total(setting)
    return {
        "setting": setting.name,
        "batch": setting.batch,
        "steps": setting.steps,
        "ours": vars(mine),
        "plain": vars(other),
        "times_faster": other.seconds / mine.seconds,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/gpu_engine.md."""
    lines = [
        "| setting | batch | T | launches, ours / plain | GB, ours / plain | TFLOP, ours / plain "
        "| predicted ms, ours / plain | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mine, other = row["ours"], row["plain"]
        lines.append(
            f"| {row['setting']} | {row['batch']} | {row['steps']} "
            f"| {mine['launches']:,.0f} / {other['launches']:,.0f} "
            f"| {mine['bytes'] / 1e9:,.1f} / {other['bytes'] / 1e9:,.1f} "
            f"| {mine['flops'] / 1e12:,.2f} / {other['flops'] / 1e12:,.2f} "
            f"| {mine['seconds'] * 1e3:,.1f} / {other['seconds'] * 1e3:,.1f} | {row['times_faster']:.1f} |"
        )
    return "\n".join(lines)


def by_kernel(works: list[Work], launching: float) -> list[tuple[str, int, float]]:
    """(name, launches, seconds), the slowest first."""
    launches: Counter[str] = Counter(work.name for work in works)
    seconds: Counter[str] = Counter()
    for work in works:
        seconds[work.name] += work.seconds(launching)  # type: ignore[assignment]
    return [(name, launches[name], float(total)) for name, total in seconds.most_common()]


def update(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the table between its marks."""
    content = path.read_text(encoding="utf-8")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def counted(rows: Callable[[Setting], dict[str, Any]], settings: Iterable[Setting]) -> Iterator[dict[str, Any]]:
    """Rows one by one, on an engine that needs no GPU because nothing is run."""
    register(TritonEngine(Operations()))
    for setting in settings:
        yield rows(setting)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--kernels", action="store_true", help="also list our kernels of one step of each")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    settings = [setting for setting in SETTINGS if not options.settings or setting.name in options.settings]
    rows = []
    for row_ in counted(row, settings):
        rows.append(row_)
        print(markdown([row_]).splitlines()[-1], flush=True)
    if options.kernels:
        for setting in settings:
            print(f"\n{setting.name}, two steps")
            for name, launches, seconds in by_kernel(ours(setting, 2), GRAPH_LAUNCH):
                print(f"{name:<40}{launches:>6}{seconds * 1e6:>12.1f} us")
    if options.update:
        update(options.update, markdown(rows))
    harness.write(options.json, "model", "python -m benchmarks.model " + " ".join(sys.argv[1:]), rows)


if __name__ == "__main__":
    main()
