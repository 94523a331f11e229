"""Computations of several ranks together and of one process alone: `python -m tests.support.ranks FOLDER` is one rank.

Every rank leaves what it holds in FOLDER, so that a test can compare the ranks with each other and with one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

# Under torchrun a kernel's module may be imported before any test's conftest.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from torch import Tensor

from pad_fast import DSA, ConvNet, ExpertStore, ParameterMask, evaluate, score, train_experts, trajectory_matching_loss
from pad_fast.data.distilled import DistilledDataset
from pad_fast.distillation.state import State
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.engines import record_backends, register
from pad_fast.engines.registry import _engines
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.errors import PadFastError, RankError
from pad_fast.experts.training import ExpertTraining
from pad_fast.models import FlatNetwork
from pad_fast.runtime import distributed, extension
from pad_fast.settings.config import Config

from .small import MODEL, QUIET, small_data

CPU = torch.device("cpu")
MASKS = (ParameterMask.none(), ParameterMask.depth(0.3), ParameterMask.loss(0.4), ParameterMask.layers(1))
BACKENDS = ("autograd", "cpu", "triton")
# One image for two ranks, an odd number, a repeated image, one batch that is the whole set.
BATCHES = [torch.tensor([0, 3, 5]), torch.tensor([4]), torch.tensor([1, 2, 2, 0, 6]), torch.arange(7)]
SPLITS: dict[str, dict[str, Any]] = {
    "batch": {"split": "batch", "trajectories": 2},
    "trajectories": {"split": "trajectories", "trajectories": 3},
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(norm: str = "instance") -> FlatNetwork:
    """In double precision, parameters away from their zeros and ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ConvNet(channels=1, classes=3, width=6, depth=2, resolution=8, norm=norm).double()
    flat = FlatNetwork(module)
    flat.load(flat.initial() + 0.1 * normal(flat.parameter_count, seed=1))
    return flat


def gradients(**changes: Any) -> dict[str, Tensor]:
    """Loss and all gradients of two stacked trajectories whose batches the ranks divide."""
    net = changes.pop("model", None) or network()
    start = net.initial() + 0.05 * normal(2, net.parameter_count, seed=2)
    hard = changes.pop("hard", False)
    given = {
        "theta_start": start,
        "theta_target": start + 0.03 * normal(*start.shape, seed=3),
        "images": normal(7, 1, 8, 8, seed=4),
        "labels": torch.tensor([0, 2, 1, 1, 0, 2, 2]) if hard else 1.5 * normal(7, 3, seed=5),
        "lr": torch.tensor(0.37, dtype=torch.float64),
    }
    wanted = [given[name].requires_grad_() for name in given if given[name].is_floating_point()]
    options = {"augment": DSA().seeded(6), "mask": MASKS[1], **changes}
    loss = trajectory_matching_loss(net, **given, batches=BATCHES, group=distributed.group(), **options)
    if options.get("gradient") == "tesla":
        wanted.remove(given["theta_start"])  # TESLA defines none
    grads = torch.autograd.grad(loss, wanted, torch.tensor([0.7, -1.6], dtype=torch.float64))
    names = [name for name, tensor in given.items() if any(tensor is each for each in wanted)]
    return {"loss": loss.detach(), **dict(zip(names, grads, strict=True))}


@contextlib.contextmanager
def naive_triton() -> Iterator[None]:
    """backend="triton" with its kernels' twins in plain torch, which need neither a GPU nor the interpreter."""
    real = _engines["triton"]
    register(TritonEngine(Operations(naive=True)))
    try:
        yield
    finally:
        _engines["triton"] = real


def all_gradients() -> dict[str, dict[str, Tensor]]:
    """Every engine, mask, kind of label and augmentation."""
    found = {f"{mask!r}": gradients(mask=mask, backend="autograd") for mask in MASKS}
    for backend in BACKENDS if extension.available() else ("autograd", "triton"):
        with record_backends() as used, naive_triton():
            found[backend] = gradients(backend=backend, cache=40_000)
        assert used == [backend]
    found["hard"] = gradients(hard=True)
    found["tesla"] = gradients(gradient="tesla")
    found["siamese"] = gradients(augment=DSA("color_crop", siamese=True).seeded(3))
    found["reference draws"] = gradients(augment=DSA("scale_rotate_cutout", mode="reference").seeded(3))
    found["no augmentation"] = gradients(augment=None)
    return found


def refusals() -> dict[str, str]:
    """Settings that cannot be divided, by name."""
    found = {}
    for name, changes in (
        ("batch norm", {"model": network("batch")}),
        ("callable", {"augment": lambda images, step: images * 2}),
        ("unroll", {"gradient": "unroll"}),
    ):
        try:
            gradients(**changes)
        except PadFastError as error:
            found[name] = str(error)
    return found


def loop_config(**changes: Any) -> Config:
    base = Config(
        iterations=8,
        syn_steps=4,
        train_epochs=5,
        max_start_epoch=3,
        sequential_generation=False,
        batch_syn=4,  # the last batch of nine images has one
        lr_img=0.3,
        lr_lr=1e-3,
        lr_y=0.2,
        lr_init=0.05,
        mask_ratio=0.4,
        threshold=1.05,
        ema_decay=0.8,
        dsa="color_crop_scale_rotate",
        seed=7,
    )
    return replace(base, **changes)


def start_of(config: Config, dtype: torch.dtype) -> State:
    labels = torch.arange(3).repeat_interleave(3)
    state = State.start(normal(9, 1, 8, 8, seed=8), normal(9, 3, seed=9), labels, config, CPU)
    for name in ("images", "label_logits", "average"):
        setattr(state, name, getattr(state, name).to(dtype))
    state.momentum = {name: value if name == "lr" else value.to(dtype) for name, value in state.momentum.items()}
    return state


def walks(folder: Path) -> ExpertStore:
    """Three random walks in place of experts."""
    net = network()
    store = ExpertStore.create(folder, parameter_count=net.parameter_count, epochs=5, metadata={"model": "walks"})
    for expert in range(len(store), 3):
        steps = torch.cat([net.initial()[None], 0.02 * normal(5, net.parameter_count, seed=20 + expert)])
        store.append(steps.cumsum(0))
    return store


def distilled(store: ExpertStore, split: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Changes that some iterations make to the state, and the losses."""
    config = loop_config(**SPLITS[split])
    net = network()
    net.module.to(dtype)
    state, loop = start_of(config, dtype), Loop(net, store, config, CPU)
    rows = [loop.iterate(state) for _ in range(config.iterations)]
    state.require_same()
    before = start_of(config, dtype)
    assert state.average is not None and before.average is not None
    return {
        "images": state.images - before.images,
        "labels": state.label_logits - before.label_logits,
        "lr": state.lr - before.lr,
        "average": state.average - before.average,
        "loss": torch.tensor([row["loss"] for row in rows], dtype=torch.float64),
        "skipped": torch.tensor([row["skipped"] for row in rows]),
    }


def scored(folder: Path) -> dict[str, Tensor]:
    """Scores from networks that the ranks divide, and accuracies of networks that they divide."""
    data = small_data()
    difficulty = score(data, model=MODEL, networks=3, epochs=2, batch=16, lr=0.05, progress=QUIET, networks_dir=folder)
    images, labels = data.train_images[:6], data.train_labels[:6]
    result = DistilledDataset(images, None, labels, 0.05, None, {"model": MODEL, "method": "pad"})
    report = evaluate(result, data, repeats=3, epochs=3, full_epochs=1, batch=16, progress=QUIET)
    accuracies = torch.tensor([row.accuracies for row in report.rows])
    return {"scores": difficulty.scores, "order": torch.cat(list(difficulty.order)), "accuracies": accuracies}


def experts(folder: Path) -> dict[str, Any]:
    """A store that the ranks fill together, file by file, and which of it this rank has trained."""
    trained = []
    original = ExpertTraining.train

    def record(self: ExpertTraining, numbers: list[int]) -> Any:
        trained.extend(numbers)
        return original(self, numbers)

    with mock.patch.object(ExpertTraining, "train", record):
        train_experts(small_data(), out=folder, experts=5, model=MODEL, epochs=3, batch=16, lr=0.05, progress=QUIET)
    stored = {path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in folder.iterdir()}
    return {"stored": stored, "trained": trained}


def everything(folder: Path, shared: Path) -> dict[str, Any]:
    """All of the above.

    Args:
        folder: of this rank.
        shared: by all ranks.
    """
    store = walks(folder / "walks")
    return {
        "gradients": all_gradients(),
        "distilled": {
            f"{split} {str(dtype).removeprefix('torch.')}": distilled(store, split, dtype)
            for split in SPLITS
            for dtype in (torch.float64, torch.float32)
        },
        "scored": scored(shared / "networks"),
        "experts": experts(shared / "experts"),
    }


def main() -> None:
    """One rank."""
    torch.set_num_threads(1)
    shared = Path(sys.argv[1])
    group = distributed.join()
    assert distributed.join() is group
    folder = shared / str(group.rank)
    folder.mkdir()
    found = everything(folder, shared)
    found["refusals"] = refusals()
    try:
        group.require_same("a test", {"rank": torch.tensor([group.rank])})
    except RankError as error:
        found["different"] = str(error)
    try:
        Loop(network(), ExpertStore.open(folder / "walks"), loop_config(trajectories=1), CPU)
    except PadFastError as error:
        found["idle"] = str(error)
    group.require_shared(shared)
    try:
        group.require_shared(folder)
    except RankError as error:
        found["apart"] = str(error)
    assert not list(shared.rglob(".rank-0*")) or group.rank, "a mark was left behind"
    found["group"] = (group.rank, group.size, group.main, distributed.group() is group)
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()
