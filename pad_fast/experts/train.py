"""Training experts and keeping a snapshot per epoch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data import DSA, ImageDataset, Normalization, fit_normalization, load_dataset
from ..device import resolve_device
from ..errors import ConfigError
from ..optimizers import Optimizer, make_optimizer
from ..progress import Progress
from ..rng import generator
from ..scoring import Difficulty
from ..training import NetworkSpec, Trainer, shuffled_batches
from .curriculum import Curriculum, prune
from .store import ExpertStore


def train_experts(
    dataset: Any,
    *,
    out: str | os.PathLike[str],
    experts: int = 20,
    epochs: int = 20,
    curriculum: Curriculum | None = None,
    difficulty: Difficulty | str | os.PathLike[str] | None = None,
    prune_rule: str = "none",
    optimizer: str = "gsam",
    rho: float = 0.01,
    alpha: float = 0.3,
    model: str = "ConvNet",
    batch: int = 256,
    lr: float = 0.01,
    dsa: str = "color_crop_cutout_flip_scale_rotate",
    dsa_mode: str = "fast",
    normalization: Normalization | None = None,
    zca: bool = False,
    seed: int = 0,
    device: str = "auto",
    backend: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ExpertStore:
    """Train networks on the real data and store their weights after every epoch (MTT, PAD's FIEx).

    Snapshot k is the weights after k epochs, 0 the initial ones. An interrupted call is continued by repeating it:
    finished experts are kept, and expert i is the same whichever call trained it.

    Args:
        dataset: anything :func:`pad_fast.load_dataset` takes.
        out: folder of the store.
        experts: how many the store should hold in the end.
        epochs: epochs per expert.
        curriculum: which images are shown when; None shows all of them always. Needs `difficulty`.
        difficulty: scores or order table (an object or a file), required by a curriculum or by pruning.
        prune_rule: "hardest:0.2", "easiest:0.1" or "none": drop a fraction of every class once.
        optimizer: "gsam" (adaptive, `rho`, `alpha`) or "sgd"; constant `lr`, no momentum, no weight decay.
        dsa: augmentation strategy or "none"; `dsa_mode` "fast" or "reference".
        normalization: fitted to the data when None (`zca` chooses ZCA, else mean and std).
        seed: expert i depends on (seed, i) only.

    Returns:
        The store, opened.

    Raises:
        ConfigError: bad counts, an empty curriculum stage, a curriculum without difficulty.
        StoreError: `out` holds experts made with other settings, or cannot be written.
    """
    for name, value in (("experts", experts), ("epochs", epochs), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if not lr > 0:
        raise ConfigError(f"expert learning rate is {lr}; it must be positive")
    # Unknown names are errors before any work, and before a store describes itself by them.
    make_optimizer(optimizer, lr)
    augment = DSA(dsa, mode=dsa_mode)
    data = load_dataset(dataset, data_dir=data_dir)
    curriculum = curriculum or Curriculum.none()
    ordered = curriculum != Curriculum.none() or prune_rule != "none"
    order = _order(data, difficulty, needed=ordered)
    order = prune(order, prune_rule)
    curriculum.require_images(epochs, [len(indices) for indices in order])
    progress = progress or Progress()
    where = resolve_device(device)
    normalization = normalization or fit_normalization(data, "zca" if zca else "mean-std")
    spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
    parameter_count = spec.build(seed, "probe").parameter_count
    store = ExpertStore.create(
        out,
        parameter_count=parameter_count,
        epochs=epochs,
        metadata={
            "model": model,
            "dataset": data.name,
            "fingerprint": data.fingerprint,
            "normalization": normalization.kind,
            "curriculum": vars(curriculum),
            "prune": prune_rule,
            "order": _digest(order) if ordered else "none",
            "optimizer": {"name": optimizer, "lr": lr, "batch": batch, "rho": rho, "alpha": alpha},
            "augmentation": {"strategy": dsa, "mode": dsa_mode},
            "seed": seed,
            "pad_fast": __version__,
        },
    )
    if len(store) >= experts:
        return store

    training = ExpertTraining(
        spec=spec,
        images=normalization.apply(data.train_images).to(where),
        labels=data.train_labels.to(where),
        order=order,
        curriculum=curriculum,
        epochs=epochs,
        batch=batch,
        optimizer=lambda: make_optimizer(optimizer, lr, rho=rho, alpha=alpha),
        augment=augment,
        seed=seed,
        device=where,
        backend=backend,
    )
    loss = float("nan")
    pending = progress.track(
        range(len(store), experts),
        "experts",
        total=experts,
        done=len(store),
        unit="expert",
        detail=lambda: f"loss {loss:.3f}",
    )
    for index in pending:
        snapshots, loss = training.train_one(index)
        store.append(snapshots)
    return store


@dataclass(frozen=True, eq=False)
class ExpertTraining:
    """Everything expert i depends on besides i; nothing in it changes from one expert to the next.

    Attributes:
        images: normalised `[N, C, H, W]`; labels: int64 `[N]`; both on `device`.
        order: dataset indices per class, easy to hard, as far as they are shown at all.
        optimizer: makes a fresh one.
    """

    spec: NetworkSpec
    images: Tensor
    labels: Tensor
    order: Sequence[Tensor]
    curriculum: Curriculum
    epochs: int
    batch: int
    optimizer: Callable[[], Optimizer]
    augment: DSA
    seed: int
    device: torch.device
    backend: str

    def train_one(self, index: int) -> tuple[Tensor, float]:
        """Expert `index` from its first weights on, whatever was trained before it.

        Returns:
            Snapshots `[epochs + 1, P]` on the CPU and the mean training loss of the last epoch.
        """
        trainer = Trainer(self.spec.build(self.seed, "expert", index), device=self.device, backend=self.backend)
        optimizer, draws = self.optimizer(), generator(self.seed, "expert draws", index)
        augment = partial(self.augment, generator=draws)
        loss = float("nan")
        # On a CPU `.cpu()` returns the live tensor itself, so the clone is what makes it a snapshot.
        snapshots = [trainer.theta.cpu().clone()]
        for epoch in range(self.epochs):
            shown = self.curriculum.indices(epoch, self.order).to(self.device)
            batches = shuffled_batches(shown, self.batch, draws)
            loss = trainer.epoch(self.images, self.labels, batches, optimizer, augment)
            snapshots.append(trainer.theta.cpu().clone())
        return torch.stack(snapshots), loss


def _digest(order: list[Tensor]) -> str:
    """Identifies an order table, so that experts trained on another one are not taken for these."""
    return hashlib.sha256(torch.cat(order).numpy().tobytes()).hexdigest()[:16]


def _order(data: ImageDataset, difficulty: Difficulty | str | os.PathLike[str] | None, *, needed: bool) -> list[Tensor]:
    if not needed:
        # Even when an order is given: it must not change which batches such experts see.
        return [data.images_of_class(label) for label in range(data.classes)]
    if difficulty is None:
        raise ConfigError(
            "a curriculum or pruning needs to know which images are hard: pass difficulty=pad_fast.score(...), "
            "or the path of an order table"
        )
    if not isinstance(difficulty, Difficulty):
        difficulty = Difficulty.load(difficulty)
    difficulty.require(data)
    return difficulty.order
