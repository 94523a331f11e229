"""YAML files of settings: ours, and the reference's under its own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from .config import Config
from .families import BOOKKEEPING, RATIOS, SPECIAL, Family, Program, published_keys

# Keys that files of ours may use as well: the published names that mean one thing in every program.
REFERENCE_KEYS: dict[str, str | None] = {
    "Iteration": "iterations",
    "lr_teacher": "lr_init",
    "Momentum_y": "momentum_y",
    "Sequential_Generation": "sequential_generation",
    "num_eval": "eval_networks",
    "epoch_eval_train": "eval_epochs",
    "dsa_strategy": "dsa",
    "res": "resolution",
    "data_path": "data_dir",
    "eval_it": None,
    "skip_first_eva": None,
    "project": None,
    "name": None,
}
_SPECIAL_KEYS = (*SPECIAL, "dsa", "data_dir", "device")

# The reference resizes ImageNet subsets only, whatever `res` says in the files of these.
_FIXED_SIZE = ("cifar10", "cifar100", "tiny", "tinyimagenet", "mnist", "fashionmnist", "svhn", "digits")
_REFUSED = {
    "texture": "distill() learns images of the network's size; canvases and several samples each are for the loss "
    "(docs/drop-in.md)",
    "random_trajectory": "experts are trained here",
    "decay": "experts' learning rate stays as it is",
    "mom": "experts are trained without momentum",
    "max_files": "all experts of buffer_path are used",
    "max_experts": "all experts of buffer_path are used",
}
_ORDERS = {"grand": "grand", "el2n": "el2n", "forgetting": "forgetting"}


def known_keys() -> list[str]:
    """Every key a config file or an override may use."""
    return sorted({*(f.name for f in fields(Config)), *REFERENCE_KEYS, *published_keys(), *_SPECIAL_KEYS})


def translate(
    values: Mapping[str, Any],
    *,
    source: str,
    family: Family | None = None,
    program: Program = "distill",
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """Rename reference keys to ours and merge keys that say one thing in two places.

    Args:
        values: keys and values as written.
        source: named in errors, e.g. the file.
        family: whose program the keys were written for, where they have another meaning than ours.
        program: which of its programs.
        notes: gets to know what has no meaning here, and what may be meant otherwise.

    Raises:
        ConfigError: an unknown key (with the nearest known one), one that asks for what there is not, or two keys that
            contradict each other.

    Example:
        >>> translate({"Iteration": 500, "depth_ratio": 0.25, "loss_ratio": 0.0}, source="example")
        {'iterations': 500, 'mask': 'depth', 'mask_ratio': 0.25}
    """
    ours = {f.name for f in fields(Config)} | {"data_dir", "device"}
    meanings = {**REFERENCE_KEYS, **(family.keys[program] if family else {})}
    result: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    unread: list[str] = []

    def put(name: str, value: Any, key: str) -> None:
        if name in result and result[name] != value:
            raise ConfigError(
                f"{source}: {said_by[name]!r} and {key!r} both set {name}, to {result[name]!r} and {value!r}; keep one"
            )
        result[name] = value
        said_by[name] = key

    for key, value in values.items():
        # Text is what YAML makes of a bare None; no setting is called that.
        value = None if value == "None" else value
        if key == "family":
            continue
        elif key in RATIOS:
            said, meant = _mask(values, notes)
            for name, each in meant.items():
                put(name, each, said)
        elif key in _REFUSED:
            if value not in (None, False, "False", 0):
                raise ConfigError(f"{source}: {key} is {value!r}, but {_REFUSED[key]}; leave it out")
        elif key == "subset":
            if plain_name(values.get("dataset")) == "imagenet":
                put("dataset", value, key)
        elif key == "dataset" and plain_name(value) == "imagenet" and "subset" in values:
            continue
        elif key == "teacher_label":
            # The labels are an expert's predictions, and stay so.
            if _true(value):
                put("soft_labels", True, key)
                put("lr_y", 0.0, key)
        elif key == "lr_img" and family and program == "distill" and family.image_gradient != 1:
            number = read_scalar(str(value))
            if type(number) in (int, float):
                value = number * family.image_gradient
                if notes is not None:
                    notes.append(
                        f"{source}: lr_img {number:g} becomes {value:g}, since the images' gradient of "
                        f"{family.title}'s program is {family.image_gradient:g} of its formula's, which is ours"
                    )
            put("lr_img", value, key)
        elif key == "no_aug":
            if _true(value):
                put("dsa", "none", key)
        elif key == "sort_method" and family and program == "experts":
            put("score_method", _score_method(value, source), key)
        elif key == "dsa" and (isinstance(value, bool) or value in ("True", "False")):
            # `dsa: False` switches augmentation off; True leaves the strategy to dsa_strategy or the default.
            if value in (False, "False"):
                put("dsa", "none", key)
        elif key == "dsa_strategy":
            if values.get("dsa") not in (False, "False") and not _true(values.get("no_aug")):
                put("dsa", value, key)
        elif key == "device":
            put("device", _device(value), key)
        elif key in meanings:
            meaning = meanings[key]
            if meaning is None:
                unread.append(key)
            elif not (key == "res" and plain_name(values.get("dataset")) in _FIXED_SIZE):
                put(meaning, value, key)
        elif key in ours:
            put(key, value, key)
        elif key in published_keys():
            unread.append(key)
        else:
            raise ConfigError(f"{source}: unknown setting {key!r}.{nearest(key, known_keys())}")
    told = sorted(set(unread) - BOOKKEEPING)
    if told and family and notes is not None:
        notes.append(f"{source}: {', '.join(told)}: without a meaning here, or not read by {family.title}'s program")
    return result


def _mask(values: Mapping[str, Any], notes: list[str] | None) -> tuple[str, dict[str, Any]]:
    """What the two ratios say together, and which of them says it: released files carry both."""
    loss, depth = values.get("loss_ratio"), values.get("depth_ratio")
    note = (
        f"loss_ratio {loss} is meant, which is what PAD's program reads; depth_ratio {depth} would be the paper's mask "
        "(--mask depth)"
    )
    if loss and depth and notes is not None and note not in notes:
        notes.append(note)
    if loss:
        return "loss_ratio", {"mask": "loss", "mask_ratio": loss}
    if depth:
        return "depth_ratio", {"mask": "depth", "mask_ratio": depth}
    return " and ".join(key for key in RATIOS if key in values), {"mask_ratio": 0.0}


def _true(value: Any) -> bool:
    return value in (True, "True", "true", 1)


def _device(value: Any) -> Any:
    """Published files number the GPUs of the machine they were written on, one or a list of them."""
    numbers = value if isinstance(value, list) else str(value).replace(" ", "").split(",")
    return "auto" if all(str(number).isdigit() for number in numbers) else value


def _score_method(value: Any, source: str) -> str:
    """`CIFAR10_GraNd` and the like name an order of images that comes with PAD's program."""
    method = _ORDERS.get(str(value).rpartition("_")[2].lower())
    if method is None:
        raise ConfigError(
            f"{source}: sort_method is {value!r}, which names no score there is here; use one that ends in "
            f"{', '.join(_ORDERS)}, or give the file of the order with order_file"
        )
    return method


def plain_name(name: Any) -> str:
    """A data set's name as it is compared: case, "-" and "_" do not matter."""
    return str(name).lower().replace("-", "").replace("_", "")


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings as a YAML file of ours or of the reference writes them.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping.
    """
    import yaml

    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_yaml_loader())
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} must be a mapping of settings, one `name: value` per line")
    return content


def read_scalar(text: str) -> Any:
    """A word as YAML reads it: a number, True or False, or text."""
    import yaml

    try:
        value = yaml.load(text, Loader=_yaml_loader())
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) else text


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """:func:`load_yaml`, renamed to our settings; see :func:`translate` for what is refused."""
    return translate(load_yaml(path), source=str(path))


def _yaml_loader() -> Any:
    """A safe loader that reads `1e-5` as a number (YAML 1.1 takes it for text)."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
    return Loader


def to_yaml(config: Config) -> str:
    """The config as YAML that :func:`read_yaml` reads back to the same config."""
    import yaml

    return yaml.safe_dump(config.describe(), sort_keys=False)
