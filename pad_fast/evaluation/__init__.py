"""What a distilled set is worth: the test accuracy of fresh networks trained on it, beside baselines."""

from .ddranking import export_ddranking
from .evaluate import evaluate
from .sets import BASELINES
from .table import AccuracyRow, EvaluationReport, RobustScore

__all__ = ["BASELINES", "AccuracyRow", "EvaluationReport", "RobustScore", "evaluate", "export_ddranking"]
