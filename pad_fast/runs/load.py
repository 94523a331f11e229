"""`pad_fast.load`: a distilled set, of a run with the accuracies it came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import ParamSpec

from ..data import distilled
from ..data.distilled import DISTILLED, DistilledDataset
from .folder import evaluation_of

Given = ParamSpec("Given")


def _evaluated(read: Callable[Given, DistilledDataset]) -> Callable[Given, DistilledDataset]:
    """A function that reads sets, and of those of a run their evaluation."""

    @wraps(read)
    def load(*args: Given.args, **kwargs: Given.kwargs) -> DistilledDataset:
        found = read(*args, **kwargs)
        # What else lies in the folder of a run, such as other programs' files, says nothing of settings.
        of_run = found.folder is not None and (found.folder / DISTILLED).is_file() and bool(found.config)
        if found.folder is None or not of_run:
            return found
        return replace(found, evaluation=evaluation_of(found.folder))

    return load


load = _evaluated(distilled.load)
