"""Shapes in signatures are checked while tests run, and cost users nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pad_fast.engines.base import Adjoint
from pad_fast.matching import normalized_distance
from pad_fast.models.updates import Updates
from pad_fast.training.trainer import shuffled_batches

from ..support.paths import ROOT
from ..support.shapes import CHECKED

needs_beartype = pytest.mark.skipif(not CHECKED, reason="jaxtyping or beartype is not installed")


@needs_beartype
def test_wrong_shapes_and_dtypes_are_refused():
    one, two = torch.ones(2, 5), torch.ones(2, 6)
    broken = [
        lambda: normalized_distance(one, one, two),
        lambda: normalized_distance(one, one, one.long()),
        lambda: Updates().sgd(one, two, torch.tensor(0.1)),
        lambda: shuffled_batches(one.long(), 2, torch.Generator()),
        lambda: Adjoint(torch.ones(3), one, None, None),
    ]
    for call in broken:
        with pytest.raises(pytest.importorskip("jaxtyping").TypeCheckError):
            call()
    assert normalized_distance(one, one + 1, one).tolist() == [0, 0]


def test_a_test_may_pass_wrong_shapes_on_purpose(shapes_unchecked):
    with pytest.raises(RuntimeError, match="must match the size"):
        normalized_distance(torch.ones(2, 5), torch.ones(2, 5), torch.ones(2, 6))


def test_nothing_is_checked_in_users_runs():
    program = """
import sys, torch, pad_fast
from pad_fast.matching import normalized_distance
assert not {"beartype", "typeguard"} & set(sys.modules)
assert not hasattr(normalized_distance, "__wrapped__"), "it is the function itself"
normalized_distance(torch.ones(5), torch.ones(5), torch.ones(1))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_needs_jaxtyping():
    program = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "jaxtyping" else find(name, *more)
sys.modules["jaxtyping"] = None
import torch, pad_fast, pad_fast.cli.main, pad_fast.verification
from pad_fast.matching import normalized_distance
assert float(normalized_distance(torch.zeros(5), torch.ones(5), torch.full((5,), 3.0))) == 2.25
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
