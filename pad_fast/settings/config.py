"""Every setting of a run, its meaning, and the names it goes by in the reference's YAML files."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ConfigError, nearest
from .snapshot_ranges import parse_keep

TRAJECTORY_METHODS = ("pad", "datm", "ftd", "mtt", "tesla")
BATCH_METHODS = ("dc", "dsa", "dm")
"""Methods that match batches of real images instead of experts' trajectories; see docs/matching.md."""
METHODS = (*TRAJECTORY_METHODS, *BATCH_METHODS)


def _setting(default: Any, text: str, *, stage: str) -> Any:
    return field(default=default, metadata={"help": text, "stage": stage})


@dataclass(frozen=True)
class Config:
    """All settings, flat. Each field is a CLI flag, a YAML key and an override of :func:`pad_fast.distill`.

    `stage` in a field's metadata names the earliest stage it changes: data, scores, experts, distill, evaluate.
    Frozen: derive another with `dataclasses.replace`, or build one with :func:`make_config`.
    """

    # Data and network
    dataset: str = _setting("digits", "data set by name, or imagefolder:PATH", stage="data")
    resolution: int | None = _setting(
        None, "resize and crop images to this many pixels (None: as they are)", stage="data"
    )
    model: str = _setting("ConvNet", "network of experts and students, e.g. ConvNetD3, ConvNetD2W32", stage="data")
    zca: bool = _setting(False, "ZCA whitening instead of per-channel mean and std", stage="data")
    seed: int = _setting(0, "one seed for everything random", stage="data")
    dsa: str = _setting(
        "color_crop_cutout_flip_scale_rotate",
        "augmentation: DSA operations joined by _, or none",
        stage="data",
    )
    dsa_mode: str = _setting("fast", "fast, or reference (draws in the published order)", stage="data")

    validation_fraction: float = _setting(
        0.0,
        "part of the training set held out of everything, to choose the best iterate by (0: the last is kept)",
        stage="data",
    )

    # Difficulty scores
    score_method: str = _setting("el2n", "el2n, grand or forgetting", stage="scores")
    score_networks: int = _setting(10, "networks averaged", stage="scores")
    score_epochs: int = _setting(10, "epochs each score network is trained", stage="scores")
    score_batch: int = _setting(256, "batch size of score networks", stage="scores")
    score_lr: float = _setting(0.01, "learning rate of score networks", stage="scores")
    order_file: str | None = _setting(
        None, "read the easy-to-hard order from this file instead of scoring", stage="scores"
    )

    # Experts (FIEx)
    num_experts: int = _setting(100, "expert networks", stage="experts")
    train_epochs: int = _setting(100, "epochs per expert; one snapshot each", stage="experts")
    batch_train: int = _setting(256, "batch size of experts", stage="experts")
    lr_expert: float = _setting(0.01, "learning rate of experts", stage="experts")
    expert_optimizer: str = _setting("gsam", "gsam or sgd", stage="experts")
    gsam_rho: float = _setting(0.01, "radius of GSAM's adaptive perturbation", stage="experts")
    gsam_alpha: float = _setting(0.3, "weight of GSAM's surrogate gap", stage="experts")
    curriculum: bool = _setting(
        True, "FIEx: order images by difficulty; False shows all of them always", stage="experts"
    )
    initial_ratio: float = _setting(0.75, "fraction of each class shown in epoch 0", stage="experts")
    add_end_epoch: int = _setting(20, "epoch at which all images are in", stage="experts")
    removal1_epoch: int = _setting(40, "after this epoch the easiest removal1_ratio is out", stage="experts")
    removal2_epoch: int = _setting(60, "after this epoch the easiest removal2_ratio is out", stage="experts")
    removal1_ratio: float = _setting(0.1, "fraction removed first", stage="experts")
    removal2_ratio: float = _setting(0.2, "fraction removed in the end", stage="experts")
    prune: str = _setting("none", "drop a fraction of every class: hardest:0.2, easiest:0.1 or none", stage="experts")
    keep: str = _setting(
        "all", "snapshots to store: all, plan (what these settings can reach) or e.g. 0:22,-1", stage="experts"
    )
    expert_storage: str = _setting("float32", "float32 (exact), float16 or bfloat16-delta", stage="experts")
    workers: int = _setting(
        0, "experts trained at once, each on a thread of its own (0: one after another on all threads)", stage="run"
    )
    test_every: int = _setting(0, "test experts after every so many epochs (0: never)", stage="run")
    buffer_path: str | None = _setting(
        None, "use the experts in this folder (a store or replay_buffer_*.pt)", stage="experts"
    )

    # Distillation
    method: str = _setting(
        "pad",
        "pad, datm, ftd, mtt, tesla (trajectory matching), dc, dsa (gradient matching) or dm (distribution matching)",
        stage="distill",
    )
    ipc: int = _setting(1, "synthetic images per class", stage="distill")
    iterations: int = _setting(
        10_000, "distillation iterations; for dc, dsa and dm one random network each", stage="distill"
    )
    syn_steps: int = _setting(80, "T: SGD steps of the student per iteration", stage="distill")
    expert_epochs: int = _setting(2, "M: epochs between the start and target snapshot", stage="distill")
    min_start_epoch: int = _setting(0, "first start epoch that may be drawn", stage="distill")
    max_start_epoch: int = _setting(20, "start epochs are drawn below this", stage="distill")
    sequential_generation: bool = _setting(True, "widen the range of start epochs over time", stage="distill")
    current_max_start_epoch: int = _setting(
        20, "upper end of the range at iteration 0 (sequential generation)", stage="distill"
    )
    expansion_end_epoch: int = _setting(3000, "iteration at which the range is fully widened", stage="distill")
    batch_syn: int | None = _setting(None, "student batch size (None: all synthetic images)", stage="distill")
    lr_img: float = _setting(100.0, "learning rate of the images", stage="distill")
    lr_lr: float = _setting(1e-5, "learning rate of the student's learning rate", stage="distill")
    lr_y: float = _setting(2.0, "learning rate of the soft labels", stage="distill")
    lr_init: float = _setting(
        0.01,
        "the student's learning rate at the start (lr_teacher in the reference); dc, dsa and dm do not change it",
        stage="distill",
    )
    momentum_img: float = _setting(0.5, "momentum of the images", stage="distill")
    momentum_lr: float = _setting(0.5, "momentum of the student's learning rate", stage="distill")
    momentum_y: float = _setting(0.9, "momentum of the soft labels", stage="distill")
    threshold: float | None = _setting(1.0, "skip iterations whose loss is above this (None: never)", stage="distill")
    mask: str = _setting("depth", "FIEm: depth, loss, layers or none", stage="distill")
    mask_ratio: float = _setting(0.5, "fraction left out (depth, loss) or number of layers (layers)", stage="distill")
    pix_init: str = _setting(
        "samples_predicted_correctly",
        "initial images: samples_predicted_correctly, real or noise",
        stage="distill",
    )
    soft_labels: bool = _setting(True, "learn soft labels; False keeps hard ones", stage="distill")
    ema_decay: float | None = _setting(None, "distil into an exponential moving average of the images", stage="distill")
    trajectories: int = _setting(
        1, "trajectories per iteration on the same batches, gradients averaged", stage="distill"
    )
    gradient: str = _setting(
        "exact", "exact, unroll (same, memory grows with T) or tesla (approximation)", stage="distill"
    )
    batch_real: int = _setting(256, "dc, dsa, dm: real images per class and update", stage="distill")
    outer_loop: int | None = _setting(
        None, "dc, dsa: image updates per network (None: the published number for the IPC)", stage="distill"
    )
    inner_loop: int | None = _setting(
        None, "dc, dsa: epochs of the network between two updates (None: the published number)", stage="distill"
    )
    match_dsa: bool = _setting(
        True, "dsa, dm: augment real and synthetic batches alike while matching; dc does not", stage="distill"
    )
    backend: str = _setting("auto", "engine: auto or one by name", stage="run")
    precision: str = _setting("auto", "arithmetic of the engine", stage="run")
    split: str = _setting(
        "trajectories", "what several processes (torchrun) divide: trajectories, or each student batch", stage="run"
    )
    cache: str = _setting(
        "0", "bytes of activations kept between the passes; 0 recomputes, auto: half of free", stage="run"
    )
    checkpoint_every: int = _setting(100, "iterations between checkpoints", stage="run")
    layer_loss_every: int = _setting(
        20, "iterations between records of the matching loss of every layer (0: never)", stage="run"
    )

    validation_every: int = _setting(500, "iterations between the iterates that are tried", stage="run")
    validation_networks: int = _setting(2, "fresh networks trained on each of them", stage="run")

    # Evaluation
    eval_networks: int = _setting(5, "fresh networks trained on the result", stage="evaluate")
    eval_epochs: int = _setting(1000, "epochs of each", stage="evaluate")
    eval_full_epochs: int = _setting(
        50, "epochs of the full-data baseline (its epochs have more steps)", stage="evaluate"
    )
    eval_batch: int = _setting(128, "batch size", stage="evaluate")
    eval_momentum: float = _setting(0.9, "SGD momentum", stage="evaluate")
    eval_weight_decay: float = _setting(5e-4, "weight decay", stage="evaluate")
    eval_baselines: bool = _setting(
        True,
        "also train on random and on the easiest real images, on k-means centres and on the full set",
        stage="evaluate",
    )
    eval_robust: bool = _setting(
        False, "also without soft labels and without augmentation, for the scores LRS and ARS", stage="evaluate"
    )

    def __post_init__(self) -> None:
        _check_types(self)
        _check_ranges(self)
        _check_batch_method(self)

    @property
    def uses_experts(self) -> bool:
        """Whether trajectories are matched; else batches of real images are."""
        return self.method in TRAJECTORY_METHODS

    @property
    def last_snapshot(self) -> int:
        """The latest expert snapshot an iteration may need: M epochs after the last start epoch."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def require_snapshots(self, epochs: int, where: str) -> None:
        """Check that experts with `epochs` epochs reach far enough.

        Raises:
            ConfigError: the start range and M together reach beyond them; `where` says whose epochs they are.
        """
        if self.last_snapshot > epochs:
            raise ConfigError(
                f"max_start_epoch {self.max_start_epoch} + expert_epochs {self.expert_epochs} reaches snapshot "
                f"{self.last_snapshot}, but {where} {epochs}; lower the start range or train experts longer"
            )

    @property
    def reached_snapshots(self) -> tuple[int, ...]:
        """The expert snapshots that iterations can ask for: starts and targets."""
        starts = range(self.min_start_epoch, self.max_start_epoch)
        return tuple(sorted({*starts, *(start + self.expert_epochs for start in starts)}))

    @property
    def kept_snapshots(self) -> tuple[int, ...]:
        """What `keep` means; a plan also reaches the last snapshots, which give the initial soft labels."""
        if self.keep == "plan":
            return tuple(sorted({*self.reached_snapshots, self.train_epochs}))
        return parse_keep(self.keep, self.train_epochs)

    def describe(self, *stages: str) -> dict[str, Any]:
        """Settings of these stages (all of them when none is named), in declaration order."""
        names = [f.name for f in fields(self) if not stages or f.metadata["stage"] in stages]
        values = asdict(self)
        return {name: values[name] for name in names}


def _check_types(config: Config) -> None:
    for item in fields(config):
        value = getattr(config, item.name)
        kinds = str(item.type).split(" | ")
        if value is None and "None" in kinds:
            continue
        base = kinds[0]
        if base == "str" and isinstance(value, os.PathLike):
            object.__setattr__(config, item.name, os.fspath(value))
            continue
        if base == "float" and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(config, item.name, float(value))
            continue
        if base == "int" and isinstance(value, float) and value.is_integer():
            object.__setattr__(config, item.name, int(value))
            continue
        expected = {"int": int, "float": float, "str": str, "bool": bool}[base]
        if not isinstance(value, expected) or (base == "int" and isinstance(value, bool)):
            raise ConfigError(f"{item.name} is {value!r}; it must be {base}{' or none' if 'None' in kinds else ''}")


_POSITIVE = (
    "score_networks score_epochs score_batch score_lr num_experts train_epochs batch_train lr_expert ipc iterations "
    "syn_steps expert_epochs lr_init expansion_end_epoch trajectories checkpoint_every eval_networks eval_epochs "
    "eval_full_epochs eval_batch batch_syn threshold resolution lr_img validation_every validation_networks "
    "batch_real outer_loop inner_loop"
).split()
_NOT_NEGATIVE = (
    "gsam_rho gsam_alpha lr_lr lr_y min_start_epoch current_max_start_epoch eval_weight_decay layer_loss_every "
    "workers test_every"
).split()
_BELOW_ONE = "momentum_img momentum_lr momentum_y eval_momentum ema_decay validation_fraction".split()
_CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "score_method": ("el2n", "grand", "forgetting"),
    "expert_optimizer": ("gsam", "sgd"),
    "expert_storage": ("float32", "float16", "bfloat16-delta"),
    "mask": ("none", "depth", "loss", "layers"),
    "pix_init": ("samples_predicted_correctly", "real", "noise"),
    "gradient": ("exact", "unroll", "tesla"),
    "dsa_mode": ("fast", "reference"),
    "split": ("trajectories", "batch"),
}


def _check_ranges(config: Config) -> None:
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}; it must be positive")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}; it must not be negative")
    for name in _BELOW_ONE:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}; it must lie in [0, 1)")
    for name, choices in _CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; use one of {', '.join(choices)}.{nearest(value, choices)}")
    if config.keep != "plan":
        parse_keep(config.keep, config.train_epochs)
    if config.min_start_epoch >= config.max_start_epoch:
        raise ConfigError(
            f"no start epoch can be drawn: min_start_epoch {config.min_start_epoch} is not below max_start_epoch "
            f"{config.max_start_epoch}"
        )
    if config.validation_fraction and config.validation_every % config.checkpoint_every:
        raise ConfigError(
            f"validation_every is {config.validation_every}, but iterates are kept at checkpoints, every "
            f"{config.checkpoint_every} iterations; make it a multiple of checkpoint_every"
        )
    if config.sequential_generation and config.current_max_start_epoch <= config.min_start_epoch:
        raise ConfigError(
            f"current_max_start_epoch {config.current_max_start_epoch} is not above min_start_epoch "
            f"{config.min_start_epoch}, so the first iterations have no start epoch to draw"
        )


def _check_batch_method(config: Config) -> None:
    """Refuse settings that only trajectory matching gives a meaning to."""
    if config.uses_experts:
        return
    wanted: dict[str, tuple[Any, str]] = {
        "buffer_path": (None, "there are no experts"),
        "gradient": ("exact", "no training run is unrolled"),
        "soft_labels": (False, "labels are not learned"),
        "threshold": (None, "no iteration is skipped"),
        "trajectories": (1, "there are no experts"),
        "ema_decay": (None, "the images themselves are the result"),
    }
    for name, (value, reason) in wanted.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}, but with method {config.method} {reason}; leave it out, or set "
                f"it to {'none' if value is None else value!r}"
            )
    if config.pix_init == "samples_predicted_correctly":
        raise ConfigError(
            f"pix_init is 'samples_predicted_correctly', but method {config.method} has no experts that could predict; "
            "use real or noise"
        )
    if config.mask == "loss":
        raise ConfigError(
            f"mask is 'loss', which orders parameters by their distance to an expert, and method {config.method} has "
            "none; use depth, layers or none"
        )
    if config.method == "dm":
        for name in ("outer_loop", "inner_loop"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name} is {getattr(config, name)}, but method dm does not train its networks")
