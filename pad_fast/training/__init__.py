"""Ordinary training on an engine, for experts, score networks and evaluation networks alike.

Imported by scoring, experts and evaluation; stands on engines, models and data.
"""

from .trainer import Trainer

__all__ = ["Trainer"]
