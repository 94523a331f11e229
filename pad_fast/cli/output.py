"""Results on the standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DistillationStopped
from ..runtime import distributed

if TYPE_CHECKING:
    from ..data.distilled import DistilledDataset


def print_once(text: object) -> None:
    """Print a result, of several processes by the main one: all have the same."""
    if distributed.group().main:
        print(text)


def print_run(result: DistilledDataset) -> None:
    """Print what a run came to, and where it is.

    Raises:
        DistillationStopped: it came to nearly nothing.
    """
    from ..distillation.skipping import advice, hardly_updated
    from ..evaluation import EvaluationReport
    from ..runs.folder import PAGE, PICTURE
    from ..settings.config import Config

    print_once(EvaluationReport(tuple(result.evaluation)).table())
    print_once(f"\n{result!r}")
    if result.folder is not None:
        print_once(f"page:   {result.folder / PAGE}\nimages: {result.folder / PICTURE}")
    if hardly := hardly_updated(result.history):
        raise DistillationStopped(f"{hardly}. {advice(Config(**result.config))}, or use back_off=True (--back-off)")
