"""Evaluation of distilled sets: the test accuracy of fresh networks trained on it, beside baselines.

Imported by runs, reporting and the pipeline; stands on training and scoring (the easiest images are a baseline).
"""

from .ddranking import export_ddranking
from .evaluate import evaluate
from .sets import BASELINES
from .table import AccuracyRow, EvaluationReport, RobustScore

__all__ = ["BASELINES", "AccuracyRow", "EvaluationReport", "RobustScore", "evaluate", "export_ddranking"]
