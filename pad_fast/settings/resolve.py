"""The settings of one run out of defaults, preset, file and arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal

from ..errors import ConfigError
from .config import Config
from .families import Program, find_family
from .fields import require_allowed
from .per_class import canonical
from .presets import defaults_for, method_settings, preset
from .yaml_files import load_yaml, translate

PathLike = str | os.PathLike[str]
Source = Literal["config", "override"]


class Unset(Enum):
    """The type of :data:`UNSET`, for annotations: `seed: int | Unset = UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return self.name


UNSET: Final = Unset.UNSET
"""An argument that was not given: the file decides, then the preset, then the default of :class:`Config`.

An argument that has its default cannot stand for that: whoever writes `seed=0` means 0, whatever the file says.
"""


@dataclass(frozen=True)
class Settings:
    """A config, and the two settings that say where a run happens rather than what it computes.

    Attributes:
        sources: who decided a setting, the file (or mapping) or an override; a setting that neither of them names has
            the value of the preset, the data set, the method or the default.
        notes: what the user should know about a published file: whose it was taken for, and what was not read.
    """

    config: Config
    data_dir: PathLike | None
    device: str
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with some settings replaced; names must be ours (see :func:`translate`)."""
    return replace(config, **values)


def make_settings(
    *,
    dataset: str = "digits",
    ipc: int = 1,
    method: str | Unset = UNSET,
    preset_name: str | None = None,
    config: Config | PathLike | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: PathLike | None | Unset = UNSET,
    device: str | Unset = UNSET,
    defaults: Mapping[str, Any] | None = None,
    program: Program = "distill",
) -> Settings:
    """Put a config together: defaults, then data set or preset, then method, then the file, then overrides.

    Without a preset, a data set with settings for this IPC uses them; otherwise those of the nearest smaller IPC.
    What a published file leaves out keeps the defaults of its program, and its method is that program's.

    Args:
        dataset, ipc, method: where neither the file nor the overrides name one; a published file stands for a method.
        preset_name: published settings, see :func:`~.presets.preset_names`.
        config: a YAML file, a mapping that means what a file with the same words means, or a ready config.
        overrides: settings that beat all others; those that are :data:`UNSET` were not given.
        data_dir, device: likewise.
        defaults: what the caller puts in place of defaults and presets.
        program: the published program whose file `config` may be.

    Raises:
        ConfigError: an unknown name or key, or a value that cannot be used.
    """
    written, source = _read(config)
    notes: list[str] = []
    family = find_family(written, program)
    silent: Mapping[str, Any] = {}
    written = translate(written, source=source, family=family, program=program, notes=notes)
    if family is not None:
        silent = family.defaults.get(program, {})
        notes.insert(0, f"{source}: read as settings of {family.title}'s program (family: NAME says otherwise)")
    last = translate(
        {name: value for name, value in (overrides or {}).items() if value is not UNSET}, source="override"
    )
    chosen = {**written, **last}
    if isinstance(chosen.get("ipc"), Mapping):
        chosen["ipc_per_class"] = chosen.pop("ipc")
    if chosen.get("ipc_per_class") is not None:
        chosen["ipc_per_class"] = canonical(chosen["ipc_per_class"])
    usual = Config.method if family is None else family.name
    method = str(chosen.get("method", usual if method is UNSET else method))
    require_allowed(Config.__dataclass_fields__["method"], method)
    if preset_name is not None:
        base = preset(preset_name)
    else:
        dataset = str(chosen.get("dataset", dataset))
        ipc = chosen.get("ipc", ipc)
        if isinstance(ipc, bool) or not isinstance(ipc, int) or ipc < 1:
            raise ConfigError(f"ipc is {ipc!r}; it must be a whole number >= 1")
        base = {**defaults_for(dataset, ipc), "dataset": dataset, "ipc": ipc}
    own = method_settings(method, str(base["dataset"]), int(base["ipc"]))
    values = {**base, **silent, **own, "method": method, **(defaults or {}), **chosen}
    found_dir, found_device = values.pop("data_dir", None), values.pop("device", "auto")
    return Settings(
        config=override(Config(), values),
        data_dir=found_dir if data_dir is UNSET else data_dir,
        device=found_device if device is UNSET else device,
        sources={**dict.fromkeys(written, "config"), **dict.fromkeys(last, "override")},
        notes=tuple(notes),
    )


def _read(config: Config | PathLike | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Settings as they are written, and what errors call the place."""
    if config is None:
        return {}, "config"
    if isinstance(config, Config):
        return config.describe(), "config"
    if isinstance(config, Mapping):
        return dict(config), "config"
    if isinstance(config, str | os.PathLike):
        return load_yaml(config), os.fspath(config)
    raise ConfigError(f"config is {config!r}; give a YAML file, a mapping or a Config")
