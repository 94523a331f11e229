"""Numbers of synthetic images for some classes, as one setting holds them: JSON, class name -> number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest

_FORM = "give a mapping of class names to whole numbers >= 1, or a YAML file of one"


def canonical(given: str | Path | Mapping[str, int] | None) -> str | None:
    """The setting out of a mapping, its text, or a YAML or JSON file; None stays.

    Raises:
        ConfigError: no mapping of names to numbers.

    Example:
        >>> canonical({"dog": 2, "cat": 5})
        '{"cat": 5, "dog": 2}'
    """
    if given is None:
        return None
    content: Any = given
    if not isinstance(given, Mapping):
        text = str(given)
        content = _parsed(text if text.lstrip().startswith("{") else _read(text), text)
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"ipc_per_class is {given!r}; {_FORM}")
    for name, number in content.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"ipc_per_class has {number!r} for {name}; {_FORM}")
    return json.dumps({str(name): number for name, number in content.items()}, sort_keys=True)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read ipc_per_class {path}: {error}; {_FORM}") from error


def _parsed(text: str, given: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"ipc_per_class {given} is not YAML: {' '.join(str(error).split())}; {_FORM}") from error


def counts_of(setting: str | None, ipc: int, names: Sequence[str]) -> list[int]:
    """Synthetic images of every class: its own number, or `ipc`.

    Raises:
        ConfigError: the setting names a class that there is not.
    """
    own: dict[str, int] = {} if setting is None else json.loads(setting)
    for name in own:
        if name not in names:
            raise ConfigError(
                f"ipc_per_class names {name!r}, which is no class of these data; they have {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}.{nearest(name, names)}"
            )
    return [own.get(name, ipc) for name in names]
