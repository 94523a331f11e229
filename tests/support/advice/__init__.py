"""Every piece of advice that a message gives, as the input that brings it up and as what following it does.

One table per part of the library; `tests/project/test_advice.py` runs them, and finds messages without an entry.
"""

from __future__ import annotations

from .entry import Entry
from .of_data import DATA
from .of_files import FILES
from .of_matching import MATCHING
from .of_models import MODELS
from .of_runs import RUNS
from .of_sets import SETS
from .of_settings import SETTINGS
from .of_training import TRAINING

ENTRIES: tuple[Entry, ...] = (*DATA, *SETS, *FILES, *SETTINGS, *MODELS, *MATCHING, *TRAINING, *RUNS)

__all__ = ["ENTRIES", "Entry"]
