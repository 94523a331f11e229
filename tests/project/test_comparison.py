"""The comparator must fail on what a wrong backward pass produces."""

from __future__ import annotations

import math

import torch

from ..support.comparison import describe_difference, relative_error


def test_it_notices_a_sign_flip_a_zeroed_row_a_bias_and_nan():
    torch.manual_seed(0)
    truth = 1e-9 * torch.randn(8, 5, dtype=torch.float64)  # tiny, as meta-gradients are
    assert relative_error(truth, truth) == 0
    assert relative_error(-truth, truth) > 1.9
    zeroed = truth.clone()
    zeroed[3] = 0
    assert relative_error(zeroed, truth) > 0.1
    assert 0.009 < relative_error(truth * 1.01, truth) < 0.011
    broken = truth.clone()
    broken[0, 0] = math.nan
    assert relative_error(broken, truth) == math.inf
    assert relative_error(torch.zeros_like(truth), torch.zeros_like(truth)) == math.inf
    assert relative_error(truth[:1], truth) == math.inf
    assert "cosine -1.0000" in describe_difference(-truth, truth)
