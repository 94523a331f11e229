"""Training experts and keeping a snapshot per epoch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data import DSA, ImageDataset, Normalization, fit_normalization, load_dataset
from ..errors import ConfigError
from ..models import FlatNetwork
from ..models.spec import NetworkSpec
from ..runtime import distributed
from ..runtime.device import free_bytes, resolve_device
from ..runtime.progress import Progress
from ..runtime.rng import generator
from ..scoring.difficulty import Difficulty
from ..settings.snapshot_ranges import parse_snapshots
from ..training.optimizers import Optimizer, make_optimizer
from ..training.trainer import Draws, Trainer, in_groups, together
from .claim import Claim, remove_leftovers
from .curriculum import Curriculum, prune
from .store import ExpertStore, shapes_text
from .workers import in_processes, require_processes


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
    keep: str = "all",
    storage: str = "float32",
    test_every: int = 0,
    workers: int = 0,
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
    finished experts are kept, and expert i is the same whichever call trained it. Several calls may fill one store at
    the same time. An engine for GPUs trains as many experts together as keep the GPU busy; what is trained together
    changes an expert by rounding only.

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
        keep: snapshots to store, "all" or numbers and ranges such as "0:22,-1"; see
            :func:`pad_fast.settings.snapshot_ranges.parse_snapshots`.
        storage: "float32", "float16" or "bfloat16-delta"; docs/experts.md says what the last two cost.
        test_every: test after every so many epochs, and once at the end, and remember it with the expert; 0 never.
        workers: experts trained at once on a CPU, each in a process of its own on one thread; 0 trains one after
            another on all threads. Large networks round differently on one thread, so the store remembers which of the
            two it was; how many there are at once changes nothing.
        normalization: fitted to the data when None (`zca` chooses ZCA, else mean and std).
        seed: expert i depends on (seed, i) only.

    Returns:
        The store, opened.

    Raises:
        ConfigError: bad counts, an empty curriculum stage, a curriculum without difficulty.
        StoreError: `out` holds experts made with other settings, or cannot be written.
        PadFastError: all workers ended early.
    """
    for name, value, least in (
        ("experts", experts, 1),
        ("epochs", epochs, 1),
        ("batch", batch, 1),
        ("test_every", test_every, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    kept = parse_snapshots(keep, epochs)
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
    if workers:
        require_processes(where)
    normalization = normalization or fit_normalization(data, "zca" if zca else "mean-std")
    spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
    network = spec.build(seed, "probe")
    store = ExpertStore.create(
        out,
        parameter_count=network.parameter_count,
        epochs=epochs,
        kept=kept,
        storage=storage,
        metadata={
            "model": model,
            "shapes": shapes_text(network.shapes),
            "dataset": data.name,
            "fingerprint": data.fingerprint,
            "normalization": normalization.kind,
            "curriculum": vars(curriculum),
            "prune": prune_rule,
            "order": _digest(order) if ordered else "none",
            "optimizer": {"name": optimizer, "lr": lr, "batch": batch, "rho": rho, "alpha": alpha},
            "augmentation": {"strategy": dsa, "mode": dsa_mode},
            "seed": seed,
            "threads": "one" if workers else "all",
            "pad_fast": __version__,
        },
    )
    missing = store.missing(experts)
    if not missing:
        remove_leftovers(store.folder)
        return ExpertStore.open(out, enough=experts)
    _warn_of_full_disk(store, len(missing), progress)
    training = ExpertTraining(
        spec=spec,
        images=normalization.apply(data.train_images).to(where),
        labels=data.train_labels.to(where),
        order=[indices.to(where) for indices in order],
        curriculum=curriculum,
        epochs=epochs,
        kept=kept,
        batch=batch,
        optimizer=lambda: make_optimizer(optimizer, lr, rho=rho, alpha=alpha),
        augment=augment,
        seed=seed,
        device=where,
        backend=backend,
        test=(normalization.apply(data.test_images).to(where), data.test_labels.to(where)) if test_every else None,
        test_every=test_every,
        together=_together(
            store, network, len(missing), min(batch, sum(map(len, order))), device=where, backend=backend
        ),
    )
    fill = partial(train_missing, store, training, missing)
    detail = ""
    finished = fill() if not workers else in_processes(fill, min(workers, len(missing)))
    done = experts - len(missing)
    tracked = progress.track(finished, "experts", total=experts, done=done, unit="expert", detail=lambda: detail)
    with closing(finished):
        for index in tracked:
            detail = _summary(store.stored_facts(index))
    remove_leftovers(store.folder)
    return ExpertStore.open(out, enough=experts)


def train_missing(store: ExpertStore, training: ExpertTraining, missing: Sequence[int]) -> Generator[int]:
    """Train the experts of these numbers that nobody else trains; yields every number once it is there.

    Numbers that another process has claimed are left to it, and come last: it is waited for, and where it ends without
    having finished, its expert is trained here.
    """
    left, wait = list(missing), False
    while left:
        claims: dict[int, Claim] = {}
        others: list[int] = []
        with ExitStack() as held:
            while left and len(claims) < training.together:
                index = left.pop(0)
                claim = store.claim(index, wait=wait)
                wait = False  # never with a claim in hand, which the other might be waiting for
                if claim is not None:
                    claims[index] = held.enter_context(claim)
                elif store.holds(index):
                    yield index
                else:
                    others.append(index)
            if claims:
                for index, result in zip(claims, training.train([*claims]), strict=True):
                    store.finish(claims[index], *result)
                    yield index
        left += others
        wait = not claims


@dataclass(frozen=True, eq=False)
class ExpertTraining:
    """Everything expert i depends on besides i; nothing in it changes from one expert to the next.

    Attributes:
        images: normalised `[N, C, H, W]`; labels: int64 `[N]`; both on `device`.
        order: dataset indices per class, easy to hard, as far as they are shown at all; on `device`.
        kept: the epochs whose snapshots are wanted.
        optimizer: makes a fresh one.
        test: images and labels to test on every `test_every` epochs, if any.
        together: how many experts :meth:`train` should be given.
    """

    spec: NetworkSpec
    images: Tensor
    labels: Tensor
    order: Sequence[Tensor]
    curriculum: Curriculum
    epochs: int
    kept: Sequence[int]
    batch: int
    optimizer: Callable[[], Optimizer]
    augment: DSA
    seed: int
    device: torch.device
    backend: str
    test: tuple[Tensor, Tensor] | None = None
    test_every: int = 0
    together: int = 1

    def train(self, numbers: Sequence[int]) -> list[tuple[Tensor, dict[str, Any]]]:
        """The experts of these numbers from their first weights on, whatever was trained before them.

        Returns:
            For each expert, snapshots `[len(kept), P]` on the CPU, and what to remember: the mean training `loss` of
            the last epoch, and test `accuracy` in percent by epoch.
        """
        networks = [self.spec.build(self.seed, "expert", number) for number in numbers]
        trainer = Trainer(networks, device=self.device, backend=self.backend)
        streams = [generator(self.seed, "expert draws", number) for number in numbers]
        draws, optimizer = Draws(trainer, streams, self.augment), self.optimizer()
        snapshots = torch.empty(len(numbers), len(self.kept), trainer.theta.shape[-1])
        places = {epoch: place for place, epoch in enumerate(self.kept)}
        accuracies: dict[str, Tensor] = {}
        losses = trainer.theta.new_full((len(numbers),), float("nan"))
        for epoch in range(self.epochs + 1):
            if epoch:
                shown = self.curriculum.indices(epoch - 1, self.order)
                batches = draws.batches(shown, self.batch)
                losses = trainer.epoch(self.images, self.labels, batches, optimizer, draws.augment)
                if self.test is not None and (epoch % self.test_every == 0 or epoch == self.epochs):
                    accuracies[str(epoch)] = trainer.accuracy(*self.test)
            if epoch in places:
                snapshots[:, places[epoch]] = trainer.theta
        facts: list[dict[str, Any]] = [{"loss": loss} for loss in losses.reshape(-1).tolist()]
        for epoch_text, percent in accuracies.items():
            for fact, value in zip(facts, percent.reshape(-1).tolist(), strict=True):
                fact.setdefault("accuracy", {})[epoch_text] = round(value, 3)
        return list(zip(snapshots, facts, strict=True))


def _together(
    store: ExpertStore, network: FlatNetwork, missing: int, batch: int, *, device: torch.device, backend: str
) -> int:
    """How many experts to train at once: what pays, less where their snapshots take too much memory."""
    most = together(network, batch, device=device, backend=backend)
    most = min(most, max(1, free_bytes(torch.device("cpu")) // 4 // store.bytes_per_expert)) if most > 1 else 1
    # Every process of the run gets its share of them, in groups of about the same size.
    share = -(-missing // distributed.group().size)
    return max(map(len, in_groups(range(share), most)))


def _warn_of_full_disk(store: ExpertStore, experts: int, progress: Progress) -> None:
    needed, free = experts * store.bytes_per_expert, shutil.disk_usage(store.folder).free
    if needed > free:
        progress.say(
            f"experts: {experts} more take {needed / 1e9:.3g} GB, but {store.folder} has {free / 1e9:.3g} GB left; "
            "keep fewer snapshots (--keep) or store them in two bytes (--expert-storage)"
        )


def _summary(facts: Mapping[str, Any]) -> str:
    accuracy = list(facts.get("accuracy", {}).values())
    return f"loss {facts.get('loss', float('nan')):.3f}" + (f", test {accuracy[-1]:.1f}%" if accuracy else "")


def _digest(order: list[Tensor]) -> str:
    """Identifies an order table, so that experts trained on another one are not taken for these."""
    return hashlib.sha256(torch.cat(order).numpy().tobytes()).hexdigest()[:16]


def _order(data: ImageDataset, difficulty: Difficulty | str | os.PathLike[str] | None, *, needed: bool) -> list[Tensor]:
    if not needed:
        # Even when an order is given: it must not change which batches such experts see.
        return data.images_by_class()
    if difficulty is None:
        raise ConfigError(
            "a curriculum or pruning needs to know which images are hard: pass difficulty=pad_fast.score(...), "
            "or the path of an order table"
        )
    if not isinstance(difficulty, Difficulty):
        difficulty = Difficulty.load(difficulty)
    difficulty.require(data)
    return difficulty.order
