"""Exporting for DD-Ranking by the name that scripts know it under."""

from __future__ import annotations

import os
from pathlib import Path

from ..data.distilled import DistilledDataset


def export_ddranking(distilled: DistilledDataset, folder: str | os.PathLike[str]) -> Path:
    """:meth:`DistilledDataset.export` in the format "ddranking"; returns the folder."""
    return distilled.export(folder, "ddranking")
