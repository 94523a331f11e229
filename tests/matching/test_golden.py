"""The gradient of an unrolled run against the reference's own numbers, by every gradient engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pad_fast import trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.engines.unroll import unroll
from pad_fast.errors import BackendError
from pad_fast.models import FlatNetwork

from ..support.comparison import relative_error
from ..support.golden import CASES, arguments_of, network_of, served_natively
from ..support.native import require_native

TOLERANCE = 1e-9  # relative L2 in float64; worst seen 4e-13


ENGINES = [("unroll", "autograd"), ("exact", "autograd"), ("exact", "cpu")]


@pytest.mark.parametrize(("gradient", "backend"), ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_match_the_reference(golden, name, gradient, backend):
    case = golden(f"unroll_{name}.npz")
    net = network_of(case)
    assert [n for n, _ in net.named_parameters()] == case["param_names"].tolist()
    arguments = arguments_of(case)
    for key in ("images", "labels", "lr"):
        arguments[key].requires_grad_()
    if backend == "cpu":
        require_native()
        if not served_natively(case):
            with pytest.raises(BackendError, match="instance norm, relu and avg pooling, not"):
                trajectory_matching_loss(net, backend="cpu", **arguments)
            return
    with record_backends() as used:
        loss = trajectory_matching_loss(net, gradient=gradient, backend=backend, **arguments)
    assert used == [backend]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["loss"]), rel=TOLERANCE)
    for key, expected in (("images", "grad_images"), ("labels", "grad_label_logits"), ("lr", "grad_syn_lr")):
        truth = torch.from_numpy(np.asarray(case[expected]))
        assert float(truth.norm()) > 1e-6, "a golden gradient that is zero proves nothing"
        assert relative_error(arguments[key].grad, truth) < TOLERANCE, key


@pytest.mark.parametrize("name", CASES)
def test_student_ends_where_the_reference_ends(golden, name):
    case = golden(f"unroll_{name}.npz")
    given = arguments_of(case)
    theta_end = unroll(
        FlatNetwork(network_of(case)),
        given["theta_start"],
        given["images"],
        given["labels"],
        given["lr"],
        batches=given["batches"],
    )
    assert relative_error(theta_end, torch.from_numpy(case["theta_end"])) < TOLERANCE
