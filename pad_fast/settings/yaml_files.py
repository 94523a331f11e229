"""YAML files of settings: ours, and the reference's under its own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from .config import Config

# Names used by published YAML files and scripts. None: accepted because files contain it, without effect here.
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
_RATIOS = ("depth_ratio", "loss_ratio")
_SPECIAL_KEYS = (*_RATIOS, "dsa", "data_dir", "device")

REFERENCE_DEFAULTS: dict[str, Any] = {
    "sequential_generation": True,
    "current_max_start_epoch": 20,
    "expansion_end_epoch": 3000,
}
"""Values that a reference file leaves these at; our presets, which know the published cell, may differ."""

# The reference resizes ImageNet subsets only, whatever `res` says in the files of these.
_FIXED_SIZE = ("cifar10", "cifar100", "tiny", "tinyimagenet", "mnist", "fashionmnist", "svhn", "digits")


def known_keys() -> list[str]:
    """Every key a config file or an override may use."""
    return sorted({*(f.name for f in fields(Config)), *REFERENCE_KEYS, *_SPECIAL_KEYS})


def is_reference(values: Mapping[str, Any]) -> bool:
    """Whether a mapping uses a key that only the reference's files have."""
    return any(key in REFERENCE_KEYS or key in _RATIOS for key in values)


def translate(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Rename reference keys to ours and merge keys that say one thing in two places.

    Args:
        values: keys and values as written.
        source: named in errors, e.g. the file.

    Raises:
        ConfigError: an unknown key (with the nearest known one), or two keys that contradict each other.

    Example:
        >>> translate({"Iteration": 500, "depth_ratio": 0.25, "loss_ratio": 0.0}, source="example")
        {'iterations': 500, 'mask': 'depth', 'mask_ratio': 0.25}
    """
    ours = {f.name for f in fields(Config)} | {"data_dir", "device"}
    result: dict[str, Any] = {}
    said_by: dict[str, str] = {}

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
        if key in _RATIOS:
            # The released files carry both ratios; the one that is not zero is meant.
            if value:
                put("mask", key.removesuffix("_ratio"), key)
                put("mask_ratio", value, key)
        elif key == "dsa" and (isinstance(value, bool) or value in ("True", "False")):
            # `dsa: False` switches augmentation off; True leaves the strategy to dsa_strategy or the default.
            if value in (False, "False"):
                put("dsa", "none", key)
        elif key == "dsa_strategy":
            if values.get("dsa") not in (False, "False"):
                put("dsa", value, key)
        elif key == "device":
            # Published files number the GPUs of the machine they were written on.
            gpu_numbers = isinstance(value, int) or str(value).replace(",", "").replace(" ", "").isdigit()
            put("device", "auto" if gpu_numbers else value, key)
        elif key in REFERENCE_KEYS:
            name = REFERENCE_KEYS[key]
            if name is not None and not (key == "res" and plain_name(values.get("dataset")) in _FIXED_SIZE):
                put(name, value, key)
        elif key in ours:
            put(key, value, key)
        else:
            raise ConfigError(f"{source}: unknown setting {key!r}.{nearest(key, known_keys())}")
    ratios = [values[key] for key in _RATIOS if key in values]
    if ratios and not any(ratios):
        put("mask_ratio", 0.0, " and ".join(key for key in _RATIOS if key in values))
    return result


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
