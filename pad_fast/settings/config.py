"""Every setting of a run, its meaning, and the names it goes by in the reference's YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..data.augment import MODES, OPERATIONS
from ..data.named import NAMES
from ..errors import ConfigError, InputError
from ..models.registry import known_networks
from ..models.sources import model_name
from .choices import (
    GRADIENTS,
    INITS,
    MASKS,
    METHODS,
    OPTIMIZERS,
    SCORE_METHODS,
    SPLITS,
    STORAGES,
    TRAJECTORY_METHODS,
)
from .fields import BELOW_ONE, NOT_NEGATIVE, POSITIVE, kinds, require_allowed, setting
from .snapshot_ranges import parse_snapshots


@dataclass(frozen=True)
class Config:
    """All settings, flat. Each field is a CLI flag, a YAML key and an override of :func:`pad_fast.distill`.

    A field's metadata (see :func:`~.fields.setting`) has its help, the limit or the choices of its value, and the
    earliest stage it changes: data, scores, experts, distill, evaluate; or run, for those that say how it runs.
    Frozen: derive another with `dataclasses.replace`, or build one with :func:`make_config`.
    """

    # Data and network
    dataset: str = setting("digits", f"{', '.join(NAMES)}, imagefolder:PATH, hf:NAME or FILE.npz", stage="data")
    resolution: int | None = setting(
        None, "resize and crop images to this many pixels (None: as they are)", stage="data", must=POSITIVE
    )
    model: str = setting(
        "ConvNet",
        f"network of experts and students, e.g. ConvNetD3: {known_networks()}",
        stage="data",
    )
    zca: bool = setting(False, "ZCA whitening instead of per-channel mean and std", stage="data")
    seed: int = setting(0, "one seed for everything random", stage="data")
    dsa: str = setting(
        "color_crop_cutout_flip_scale_rotate",
        f"augmentation: some of {', '.join(OPERATIONS)} joined by _, or none",
        stage="data",
    )
    dsa_mode: str = setting("fast", "draws of DSA: {choices} (in the published order)", stage="data", choices=MODES)

    validation_fraction: float = setting(
        0.0,
        "part of the training set held out of everything, to choose the best iterate by (0: the last is kept)",
        stage="data",
        must=BELOW_ONE,
    )

    # Difficulty scores
    score_method: str = setting("el2n", "measure of difficulty: {choices}", stage="scores", choices=SCORE_METHODS)
    score_networks: int = setting(10, "networks averaged", stage="scores", must=POSITIVE)
    score_epochs: int = setting(10, "epochs each score network is trained", stage="scores", must=POSITIVE)
    score_batch: int = setting(256, "batch size of score networks", stage="scores", must=POSITIVE)
    score_lr: float = setting(0.01, "learning rate of score networks", stage="scores", must=POSITIVE)
    order_file: str | None = setting(
        None, "read the easy-to-hard order from this file instead of scoring", stage="scores"
    )

    # Experts (FIEx)
    num_experts: int = setting(100, "expert networks", stage="experts", must=POSITIVE)
    train_epochs: int = setting(100, "epochs per expert; one snapshot each", stage="experts", must=POSITIVE)
    batch_train: int = setting(256, "batch size of experts", stage="experts", must=POSITIVE)
    lr_expert: float = setting(0.01, "learning rate of experts", stage="experts", must=POSITIVE)
    expert_optimizer: str = setting("gsam", "optimizer of experts: {choices}", stage="experts", choices=OPTIMIZERS)
    gsam_rho: float = setting(0.01, "radius of GSAM's adaptive perturbation", stage="experts", must=NOT_NEGATIVE)
    gsam_alpha: float = setting(0.3, "weight of GSAM's surrogate gap", stage="experts", must=NOT_NEGATIVE)
    curriculum: bool = setting(
        True, "FIEx: order images by difficulty; False shows all of them always", stage="experts"
    )
    initial_ratio: float = setting(0.75, "fraction of each class shown in epoch 0", stage="experts")
    add_end_epoch: int = setting(20, "epoch at which all images are in", stage="experts")
    removal1_epoch: int = setting(40, "after this epoch the easiest removal1_ratio is out", stage="experts")
    removal2_epoch: int = setting(60, "after this epoch the easiest removal2_ratio is out", stage="experts")
    removal1_ratio: float = setting(0.1, "fraction removed first", stage="experts")
    removal2_ratio: float = setting(0.2, "fraction removed in the end", stage="experts")
    prune: str = setting("none", "drop a fraction of every class: hardest:0.2, easiest:0.1 or none", stage="experts")
    keep: str = setting(
        "all", "snapshots to store: all, plan (what these settings can reach) or e.g. 0:22,-1", stage="experts"
    )
    expert_storage: str = setting(
        "float32", "number format of stored experts: {choices}; float32 is exact", stage="experts", choices=STORAGES
    )
    workers: int = setting(
        0,
        "experts trained at once, each on a thread of its own (0: one after another on all threads)",
        stage="run",
        must=NOT_NEGATIVE,
    )
    test_every: int = setting(0, "test experts after every so many epochs (0: never)", stage="run", must=NOT_NEGATIVE)
    buffer_path: str | None = setting(
        None, "use the experts in this folder (a store or replay_buffer_*.pt)", stage="experts"
    )

    # Distillation
    method: str = setting(
        "pad",
        "method: {choices}; dc and dsa match gradients, dm distributions, the others trajectories",
        stage="distill",
        choices=METHODS,
    )
    ipc: int = setting(1, "synthetic images per class", stage="distill", must=POSITIVE)
    ipc_per_class: str | None = setting(
        None, "numbers of some classes' own: a YAML file of class names and numbers", stage="distill", later=True
    )
    iterations: int = setting(
        10_000, "distillation iterations; for dc, dsa and dm one random network each", stage="distill", must=POSITIVE
    )
    syn_steps: int = setting(80, "T: SGD steps of the student per iteration", stage="distill", must=POSITIVE)
    expert_epochs: int = setting(2, "M: epochs between the start and target snapshot", stage="distill", must=POSITIVE)
    min_start_epoch: int = setting(0, "first start epoch that may be drawn", stage="distill", must=NOT_NEGATIVE)
    max_start_epoch: int = setting(20, "start epochs are drawn below this", stage="distill")
    sequential_generation: bool = setting(True, "widen the range of start epochs over time", stage="distill")
    current_max_start_epoch: int = setting(
        20, "upper end of the range at iteration 0 (sequential generation)", stage="distill", must=NOT_NEGATIVE
    )
    expansion_end_epoch: int = setting(
        3000, "iteration at which the range is fully widened", stage="distill", must=POSITIVE
    )
    batch_syn: int | None = setting(
        None, "student batch size (None: all synthetic images)", stage="distill", must=POSITIVE
    )
    lr_img: float | Literal["auto"] = setting(
        100.0, "learning rate of the images; auto: search its power of ten", stage="distill", must=POSITIVE
    )
    lr_lr: float = setting(1e-5, "learning rate of the student's learning rate", stage="distill", must=NOT_NEGATIVE)
    lr_y: float = setting(2.0, "learning rate of the soft labels", stage="distill", must=NOT_NEGATIVE)
    lr_init: float = setting(
        0.01,
        "the student's learning rate at the start (lr_teacher in the reference); dc, dsa and dm do not change it",
        stage="distill",
        must=POSITIVE,
    )
    momentum_img: float = setting(0.5, "momentum of the images", stage="distill", must=BELOW_ONE)
    momentum_lr: float = setting(0.5, "momentum of the student's learning rate", stage="distill", must=BELOW_ONE)
    momentum_y: float = setting(0.9, "momentum of the soft labels", stage="distill", must=BELOW_ONE)
    threshold: float | None = setting(
        1.0, "skip iterations whose loss is above this (None: never)", stage="distill", must=POSITIVE
    )
    back_off: bool = setting(
        False,
        "where a run would stop, go on from its last good state with half the step of what blew up",
        stage="distill",
        later=True,
    )
    mask: str = setting("depth", "FIEm: {choices}", stage="distill", choices=MASKS)
    mask_ratio: float = setting(0.5, "fraction left out (depth, loss) or number of layers (layers)", stage="distill")
    pix_init: str = setting(
        "samples_predicted_correctly",
        "initial images: {choices}",
        stage="distill",
        choices=INITS,
    )
    soft_labels: bool = setting(True, "learn soft labels; False keeps hard ones", stage="distill")
    ema_decay: float | None = setting(
        None, "distil into an exponential moving average of the images", stage="distill", must=BELOW_ONE
    )
    trajectories: int = setting(
        1, "trajectories per iteration on the same batches, gradients averaged", stage="distill", must=POSITIVE
    )
    gradient: str = setting(
        "exact",
        "gradient: {choices}; unroll is the same, but its memory grows with T, tesla an approximation",
        stage="distill",
        choices=GRADIENTS,
    )
    batch_real: int = setting(256, "dc, dsa, dm: real images per class and update", stage="distill", must=POSITIVE)
    outer_loop: int | None = setting(
        None,
        "dc, dsa: image updates per network (None: the published number for the IPC)",
        stage="distill",
        must=POSITIVE,
    )
    inner_loop: int | None = setting(
        None,
        "dc, dsa: epochs of the network between two updates (None: the published number)",
        stage="distill",
        must=POSITIVE,
    )
    match_dsa: bool = setting(
        True, "dsa, dm: augment real and synthetic batches alike while matching; dc does not", stage="distill"
    )
    backend: str = setting("auto", "engine: auto, triton, cpu or autograd", stage="run")
    precision: str = setting(
        "auto",
        "arithmetic: auto, of the engine cpu high, highest or fast, of triton tf32, ieee or bf16",
        stage="run",
    )
    split: str = setting(
        "trajectories",
        "what several processes (torchrun) divide: {choices} (every student batch)",
        stage="run",
        choices=SPLITS,
    )
    cache: str = setting(
        "0", "bytes of activations kept between the passes; 0 recomputes, auto: half of free", stage="run"
    )
    checkpoint_every: int = setting(100, "iterations between checkpoints", stage="run", must=POSITIVE)
    layer_loss_every: int = setting(
        20, "iterations between records of the matching loss of every layer (0: never)", stage="run", must=NOT_NEGATIVE
    )

    validation_every: int = setting(500, "iterations between the iterates that are tried", stage="run", must=POSITIVE)
    validation_networks: int = setting(2, "fresh networks trained on each of them", stage="run", must=POSITIVE)

    # Evaluation
    eval_networks: int = setting(5, "fresh networks trained on the result", stage="evaluate", must=POSITIVE)
    eval_epochs: int = setting(1000, "epochs of each", stage="evaluate", must=POSITIVE)
    eval_full_epochs: int = setting(
        50, "epochs of the full-data baseline (its epochs have more steps)", stage="evaluate", must=POSITIVE
    )
    eval_batch: int = setting(128, "batch size", stage="evaluate", must=POSITIVE)
    eval_momentum: float = setting(0.9, "SGD momentum", stage="evaluate", must=BELOW_ONE)
    eval_weight_decay: float = setting(5e-4, "weight decay", stage="evaluate", must=NOT_NEGATIVE)
    eval_baselines: bool = setting(
        True,
        "also train on random and on the easiest real images, on k-means centres and on the full set",
        stage="evaluate",
    )
    eval_robust: bool = setting(
        False, "also without soft labels and without augmentation, for the scores LRS and ARS", stage="evaluate"
    )

    def __post_init__(self) -> None:
        _check_fields(self)
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
        """Snapshots that `keep` stands for; a plan has the last one too, which gives the initial soft labels."""
        if self.keep == "plan":
            return tuple(sorted({*self.reached_snapshots, self.train_epochs}))
        return parse_snapshots(self.keep, self.train_epochs)

    def describe(self, *stages: str) -> dict[str, Any]:
        """Settings of these stages (all of them when none is named), in declaration order."""
        names = [f.name for f in fields(self) if not stages or f.metadata["stage"] in stages]
        values = asdict(self)
        return {name: values[name] for name in names}

    def digested(self, *stages: str) -> dict[str, Any]:
        """:meth:`describe` as far as results are found by it: a later setting counts where it is not its default."""
        as_before = {f.name for f in fields(self) if f.metadata["later"] and getattr(self, f.name) == f.default}
        return {name: value for name, value in self.describe(*stages).items() if name not in as_before}


def completed(described: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run has recorded, and the defaults of those that it does not name: it is older than they.

    Example:
        >>> completed({"ipc": 3})["ipc"], completed({"ipc": 3})["back_off"]
        (3, False)
    """
    return {**{f.name: f.default for f in fields(Config)}, **described}


def _check_fields(config: Config) -> None:
    kind = kinds(Config)
    try:
        object.__setattr__(config, "model", model_name(config.model))  # frozen, but nobody has seen it yet
    except InputError as error:
        raise ConfigError(str(error)) from error
    for item in fields(config):
        value = kind[item.name].convert(item.name, getattr(config, item.name))
        object.__setattr__(config, item.name, value)
    for item in fields(config):
        require_allowed(item, getattr(config, item.name))


def _check_ranges(config: Config) -> None:
    if config.keep != "plan":
        parse_snapshots(config.keep, config.train_epochs)
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
        "ipc_per_class": (None, "every class has the same number of images"),
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
