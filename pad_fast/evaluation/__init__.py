"""What a distilled set is worth: the test accuracy of fresh networks trained on it, beside baselines."""

from .ddranking import export_ddranking
from .rows import AccuracyRow, EvaluationReport, RobustScore
from .run import evaluate
from .sets import BASELINES

__all__ = ["BASELINES", "AccuracyRow", "EvaluationReport", "RobustScore", "evaluate", "export_ddranking"]
