"""`train_experts()`: a store is filled with what is missing, by one process or by several."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data import ImageDataset, Normalization, fit_normalization, load_dataset
from ..models import FlatNetwork
from ..models.sources import Maker, model_name
from ..models.spec import NetworkSpec
from ..runtime import distributed
from ..runtime.device import free_bytes, resolve_device
from ..runtime.progress import Progress
from ..scoring.difficulty import Difficulty
from ..training.trainer import in_groups, together
from .claim import Claim, remove_leftovers
from .curriculum import Curriculum
from .recipe import ExpertRecipe, require_at_least
from .store import ExpertStore, shapes_text
from .training import ExpertTraining
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
    model: str | Maker = "ConvNet",
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
    progress: Progress | bool | None = None,
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
        model: network of the experts, as :func:`pad_fast.network` takes it.
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
    model = model_name(model)
    recipe = ExpertRecipe(
        model=model,
        epochs=epochs,
        curriculum=curriculum or Curriculum.none(),
        prune_rule=prune_rule,
        optimizer=optimizer,
        lr=lr,
        rho=rho,
        alpha=alpha,
        batch=batch,
        dsa=dsa,
        dsa_mode=dsa_mode,
        keep=keep,
        storage=storage,
        test_every=test_every,
        seed=seed,
    )
    require_at_least(1, experts=experts)
    require_at_least(0, workers=workers)
    progress = Progress.of(progress)
    data = load_dataset(dataset, data_dir=data_dir, progress=progress)
    order = recipe.images(data, difficulty)
    where = resolve_device(device)
    if workers:
        require_processes(where)
    normalization = normalization or fit_normalization(data, "zca" if zca else "mean-std", progress=progress)
    spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
    network = spec.build(seed, "probe")
    described = _describe(recipe, data, normalization, order, network, threads="one" if workers else "all")
    store = ExpertStore.create(
        out,
        parameter_count=network.parameter_count,
        epochs=epochs,
        kept=recipe.kept,
        storage=storage,
        metadata=described,
    )
    missing = store.missing(experts)
    if missing:
        _warn_of_full_disk(store, len(missing), progress)
        images = min(batch, sum(map(len, order)))
        most = experts_together(store, network, len(missing), images, device=where, backend=backend)
        training = ExpertTraining(
            recipe=recipe,
            spec=spec,
            images=normalization.apply(data.train_images).to(where),
            labels=data.train_labels.to(where),
            order=[indices.to(where) for indices in order],
            device=where,
            backend=backend,
            test=(normalization.apply(data.test_images).to(where), data.test_labels.to(where)) if test_every else None,
            together=most,
        )
        _fill(store, training, missing, experts=experts, workers=workers, progress=progress)
    remove_leftovers(store.folder)
    return ExpertStore.open(out, enough=experts)


def _describe(
    recipe: ExpertRecipe,
    data: ImageDataset,
    normalization: Normalization,
    order: Sequence[Tensor],
    network: FlatNetwork,
    *,
    threads: str,
) -> dict[str, Any]:
    """The part of `store.json` that a store is recognised by when it is continued."""
    return {
        "model": recipe.model,
        "shapes": shapes_text(network.shapes),
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "normalization": normalization.kind,
        **recipe.describe(order),
        "threads": threads,
        "pad_fast": __version__,
    }


def _fill(
    store: ExpertStore,
    training: ExpertTraining,
    missing: Sequence[int],
    *,
    experts: int,
    workers: int,
    progress: Progress,
) -> None:
    """Train what is missing of `experts`, and say how each of them came out."""
    fill = partial(train_missing, store, training, missing)
    finished = in_processes(fill, min(workers, len(missing))) if workers else fill()
    detail = ""
    done = experts - len(missing)
    tracked = progress.track(finished, "experts", total=experts, done=done, unit="expert", detail=lambda: detail)
    with closing(finished):
        for index in tracked:
            detail = _summary(store.stored_facts(index))


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


def experts_together(
    store: ExpertStore, network: FlatNetwork, missing: int, batch: int, *, device: torch.device, backend: str
) -> int:
    """Number of experts to train at once: what pays, less where their snapshots take too much memory."""
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
