"""What the keys of published programs mean: MTT, FTD, TESLA, DATM and PAD, program by program.

Their files and command lines share most names but not all meanings: `batch_train` is the experts' batch where experts
are trained and the evaluation's where images are, and a key may be read by one program and only be carried along by
another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..errors import ConfigError, nearest
from .config import Config

Program = Literal["distill", "experts", "evaluate"]

_BOOKKEEPING: dict[str, str | None] = dict.fromkeys(
    ("project", "name", "eval_it", "skip_first_eva", "eval_mode", "save_interval", "load_all", "force_save")
)
BOOKKEEPING = frozenset(_BOOKKEEPING)
"""Keys that change nothing anybody computes: nobody needs to be told that they are not read."""

_EVERYWHERE: dict[str, str | None] = {
    **_BOOKKEEPING,
    "data_path": "data_dir",
    "dsa_strategy": "dsa",
    "res": "resolution",
    "batch_real": None,  # of a loader whose batches only one of the baselines looks at
}
_EVALUATION: dict[str, str | None] = {
    "num_eval": "eval_networks",
    "epoch_eval_train": "eval_epochs",
    "batch_train": "eval_batch",
}
_DISTILL: dict[str, str | None] = {
    **_EVERYWHERE,
    **_EVALUATION,
    "Iteration": "iterations",
    "lr_teacher": "lr_init",
    "lr_init": None,  # declared, and lr_teacher read in its place
    "Momentum_y": "momentum_y",
    "Sequential_Generation": "sequential_generation",
}
_EXPERTS: dict[str, str | None] = {
    **_EVERYWHERE,
    "lr_teacher": "lr_expert",
    "rho": "gsam_rho",
    "rho_max": "gsam_rho",
    "rho_min": "gsam_rho",
    "alpha": "gsam_alpha",
    "adaptive": None,
}
_CURRICULUM: dict[str, str | None] = {
    "init_ratio": "initial_ratio",
    "rm_epoch_first": "removal1_epoch",
    "rm_epoch_second": "removal2_epoch",
    "rm_easy_ratio_first": "removal1_ratio",
    "rm_easy_ratio_second": "removal2_ratio",
    "sort_method": "score_method",
    "add_hard": None,
    "rm_easy": None,
    "max_ratio": None,
}
_TRIO: dict[str, str | None] = {**_EVERYWHERE, "epoch_eval_train": "eval_epochs", "batch_train": "eval_batch"}
_MTT_DEFAULTS: dict[str, Any] = {
    "iterations": 5000,
    "syn_steps": 20,
    "expert_epochs": 3,
    "min_start_epoch": 0,
    "max_start_epoch": 25,
    "batch_syn": None,
    "lr_img": 1000.0,
    "lr_lr": 1e-5,
    "lr_init": 0.01,
    "pix_init": "real",
    "zca": False,
    "eval_networks": 5,
    "eval_epochs": 1000,
    "eval_batch": 256,
}
_SEQUENTIAL: dict[str, Any] = {
    "sequential_generation": True,
    "current_max_start_epoch": 20,
    "expansion_end_epoch": 3000,
}
_GSAM: dict[str, Any] = {"expert_optimizer": "gsam", "gsam_alpha": 0.4, "gsam_rho": 2.0}
_BUFFER: dict[str, Any] = {
    "num_experts": 100,
    "train_epochs": 50,
    "batch_train": 256,
    "lr_expert": 0.01,
    "zca": False,
    "curriculum": False,
}


@dataclass(frozen=True)
class Family:
    """One author's programs.

    Attributes:
        name: as `family:` names it, which is the method's name too.
        title: as it is spoken of.
        keys: by program, the setting that a key of theirs stands for; None has no meaning here.
        defaults: by program, what theirs takes where nothing is said and our method would take something else.
        image_gradient: what its distillation multiplies the images' gradient with; `lr_img` makes up for it.
    """

    name: str
    title: str
    keys: Mapping[Program, Mapping[str, str | None]]
    defaults: Mapping[Program, Mapping[str, Any]] = field(default_factory=dict)
    image_gradient: float = 1.0


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "mtt",
            "MTT",
            {"distill": _DISTILL, "experts": _EXPERTS, "evaluate": _TRIO},
            {"distill": _MTT_DEFAULTS, "experts": {**_BUFFER, "expert_optimizer": "sgd"}},
        ),
        Family(
            "ftd",
            "FTD",
            {"distill": _DISTILL, "experts": _EXPERTS, "evaluate": _TRIO},
            {"distill": {**_MTT_DEFAULTS, "ema_decay": 0.999}, "experts": {**_BUFFER, **_GSAM}},
        ),
        Family(
            "tesla",
            "TESLA",
            {"distill": _DISTILL, "experts": _EXPERTS, "evaluate": _TRIO},
            {
                "distill": {
                    **_MTT_DEFAULTS,
                    "iterations": 10_000,
                    "lr_img": 500.0,  # of 1000
                    "eval_networks": 3,
                    "soft_labels": False,
                },
                "experts": {**_BUFFER, "expert_optimizer": "sgd"},
            },
            image_gradient=0.5,  # a factor of 2 that repeats a tuple in place of doubling what is in it
        ),
        Family(
            "datm",
            "DATM",
            # Images are averaged by neither of these two programs, whatever decay their files carry.
            {"distill": {**_DISTILL, "ema_decay": None}, "experts": _EXPERTS, "evaluate": _TRIO},
            {"distill": _SEQUENTIAL, "experts": {**_BUFFER, **_GSAM}},
        ),
        Family(
            "pad",
            "PAD",
            {
                "distill": {**_DISTILL, "ema_decay": None},
                "experts": {**_EXPERTS, **_CURRICULUM},
                "evaluate": _TRIO,
            },
            {
                "distill": _SEQUENTIAL,
                "experts": {
                    **_BUFFER,
                    **_GSAM,
                    "curriculum": True,
                    "initial_ratio": 1.0,
                    "add_end_epoch": 100,
                    "removal2_ratio": 0.1,
                },
            },
        ),
    )
}

RATIOS = ("depth_ratio", "loss_ratio")
# Read one by one in `yaml_files.translate`.
SPECIAL = (*RATIOS, "family", "subset", "no_aug", "mom", "decay", "texture", "teacher_label", "random_trajectory")
_LIMITS = ("canvas_size", "canvas_samples", "max_files", "max_experts")
SWITCHES = ("load_all", "force_save", "decay", "texture", "teacher_label", "random_trajectory")
"""Flags of published programs that stand for True when nothing follows them."""


def published_keys(program: Program | None = None) -> set[str]:
    """Every key that some published program has and we have not, under any meaning."""
    found = {*SPECIAL, *_LIMITS}
    for family in FAMILIES.values():
        for each, keys in family.keys.items():
            if program in (None, each):
                found |= set(keys)
    return found


def is_published(values: Iterable[str]) -> bool:
    """Whether there is a key that only published programs have."""
    return bool(set(values) & (published_keys() - {f.name for f in fields(Config)}))


def find_family(values: Mapping[str, Any], program: Program = "distill", *, typed: bool = False) -> Family | None:
    """The family whose file or command line this is; None for ours.

    Args:
        values: keys and values as written.
        program: that reads them.
        typed: they come from a command line; files are read by the programs of DATM and PAD alone.

    Raises:
        ConfigError: `family` names none.
    """
    named = values.get("family")
    if named is not None:
        name = str(named).lower()
        if name not in FAMILIES:
            raise ConfigError(f"unknown family {named!r}; use one of {', '.join(FAMILIES)}.{nearest(name, FAMILIES)}")
        return FAMILIES[name]
    if not is_published(values):
        return None
    has = set(values)
    if has & set(RATIOS) or (program == "experts" and has & _CURRICULUM.keys()):
        return FAMILIES["pad"]
    if not typed:
        return FAMILIES["datm"]
    if program == "experts":
        gsam = bool(has & {"rho", "rho_max", "rho_min", "alpha"})
        return FAMILIES["mtt" if not gsam else "datm" if "alpha" in has else "ftd"]
    if "ema_decay" in has:
        return FAMILIES["ftd"]
    return FAMILIES["tesla" if has & {"teacher_label", "random_trajectory"} else "mtt"]
