"""The settings of one run out of defaults, preset, file and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError, nearest
from .config import METHODS, Config
from .presets import _DIGITS_BATCH, _DIGITS_IPC, _METHOD_SETTINGS, _TABLE, preset
from .yaml_files import REFERENCE_DEFAULTS, is_reference, load_yaml, plain_name, translate


@dataclass(frozen=True)
class Settings:
    """A config, and the two settings that say where a run happens rather than what it computes."""

    config: Config
    data_dir: str | None = None
    device: str = "auto"


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with some settings replaced; names must be ours (see :func:`translate`)."""
    return replace(config, **values)


def make_settings(
    *,
    dataset: str = "digits",
    ipc: int = 1,
    method: str = "pad",
    preset_name: str | None = None,
    file: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Put a config together: defaults, then data set or preset, then method, then the file, then overrides.

    Without a preset, a data set with settings for this IPC uses them; otherwise those of the nearest smaller IPC.
    What a file of the reference leaves out about sequential generation keeps the reference's defaults.

    Raises:
        ConfigError: an unknown name or key, or a value that cannot be used.
    """
    written = load_yaml(file) if file else {}
    silent = REFERENCE_DEFAULTS if is_reference(written) else {}
    written = translate(written, source=str(file))
    last = translate(overrides or {}, source="override")
    chosen = {**written, **last}
    method = str(chosen.get("method", method))
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; use one of {', '.join(METHODS)}.{nearest(method, METHODS)}")
    if preset_name is not None:
        base = preset(preset_name)
    else:
        dataset = str(chosen.get("dataset", dataset))
        ipc = chosen.get("ipc", ipc)
        if isinstance(ipc, bool) or not isinstance(ipc, int) or ipc < 1:
            raise ConfigError(f"ipc is {ipc!r}; it must be a whole number >= 1")
        base = {**_defaults_for(dataset, ipc), "dataset": dataset, "ipc": ipc}
    own = _METHOD_SETTINGS[method] | _digits_batch(method, str(base.get("dataset")), int(base["ipc"]))
    values = {**base, **silent, **own, "method": method, **chosen}
    data_dir, device = values.pop("data_dir", None), values.pop("device", "auto")
    return Settings(override(Config(), values), data_dir, device)


def _digits_batch(method: str, dataset: str, ipc: int) -> dict[str, Any]:
    cells = _DIGITS_BATCH.get(method, {}) if plain_name(dataset) == "digits" else {}
    return cells[max(known for known in cells if known <= ipc)] if cells else {}


def _defaults_for(dataset: str, ipc: int) -> dict[str, Any]:
    key = plain_name(dataset)
    key = {"tiny": "tinyimagenet"}.get(key, key)
    cells = {**_TABLE, "digits": _DIGITS_IPC}.get(key)
    if cells is None:
        return {}
    nearest_ipc = max((known for known in cells if known <= ipc), default=min(cells))
    return preset(f"{key}-ipc{nearest_ipc}")
