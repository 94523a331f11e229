"""What data sets and layers are called on a page."""

from __future__ import annotations

import re
from collections.abc import Sequence


def data_name(dataset: object) -> str:
    """A data set's name without the folders that it lies in, which are nobody's business whom a page is sent to.

    Example:
        >>> data_name("imagefolder:/home/me/birds/"), data_name("~/x.npz"), data_name("hf:owner/birds")
        ('birds', 'x', 'hf:owner/birds')
    """
    text = str(dataset)
    kind, colon, place = text.partition(":")
    if kind == "hf" and colon:
        name, *options = place.split(",")
        if not name.startswith((".", "/", "~")) and name.count("/") <= 1 and "\\" not in name:
            return text  # of the hub
        return ",".join([_last(name), *options])
    if kind == "imagefolder" and colon:
        return _last(place)
    return _last(text) if re.search(r"^(?:[./~]|[A-Za-z]:[/\\])|\.npz$", text) else text


def _last(path: str) -> str:
    """The last part of a path, without the end of a file of arrays; the whole where there is no part."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..", "~")]
    return parts[-1].removesuffix(".npz") if parts else path


def layer_names(layers: Sequence[str], model: object) -> list[str]:
    """Layers as readers call them, in order: those in a row of modules by what they are, others by their own name.

    Args:
        layers: names of modules, shallow to deep.
        model: the network's name, which says what its rows are of.

    Example:
        >>> layer_names(["features.0", "features.4", "classifier"], "ConvNetD2")
        ['conv 1', 'conv 2', 'classifier']
    """
    kind = "linear" if str(model).upper().startswith("MLP") else "conv"
    counts = {"features": 0, "hidden": 0, "classifier": 0}
    said = []
    for name in layers:
        row, _, place = name.partition(".")
        if row in counts and place.isdecimal():
            counts[row] += 1
            said.append(f"{kind if row == 'features' else 'linear'} {counts[row]}")
        else:
            said.append(name)
    return said if len(set(said)) == len(said) else list(layers)
