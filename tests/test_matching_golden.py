"""The gradient of an unrolled run against the reference's own numbers, by every gradient engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pad_fast import ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.engines.unroll import unroll
from pad_fast.errors import BackendError
from pad_fast.models import FlatNetwork

from .compare import relative_error
from .conftest import require_native

CASES = [
    "plain",
    "depth_mask",
    "loss_mask",
    "ragged_batches",
    "gray_28px",
    "depth4_64px",
    "width128",
    "variant_batchnorm_relu_avgpooling",
    "variant_groupnorm_relu_avgpooling",
    "variant_instancenorm_leakyrelu_avgpooling",
    "variant_instancenorm_relu_maxpooling",
    "variant_instancenorm_relu_none",
    "variant_instancenorm_sigmoid_avgpooling",
    "variant_layernorm_relu_avgpooling",
    "variant_none_relu_avgpooling",
]
TOLERANCE = 1e-9  # relative L2 in float64; worst seen 4e-13


def network_of(case: dict[str, Any]) -> ConvNet:
    return ConvNet(
        channels=int(case["channels"]),
        classes=int(case["classes"]),
        width=int(case["width"]),
        depth=int(case["depth"]),
        resolution=int(case["resolution"]),
        norm=str(case["norm"]),
        activation=str(case["activation"]),
        pooling=str(case["pooling"]),
    ).double()


def arguments_of(case: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        key: torch.from_numpy(np.atleast_1d(case[name])).double()
        for key, name in (
            ("theta_start", "theta_start"),
            ("theta_target", "theta_target"),
            ("images", "images"),
            ("labels", "label_logits"),
        )
    }
    mask = ParameterMask(str(case["mask_kind"]), float(case["mask_ratio"]))
    indices = torch.from_numpy(case["batch_indices"]).split(case["batch_sizes"].tolist())
    return {**tensors, "lr": torch.tensor(float(case["syn_lr"]), dtype=torch.float64), "batches": indices, "mask": mask}


ENGINES = [("unroll", "autograd"), ("exact", "autograd"), ("exact", "cpu")]


def served_natively(case: dict[str, Any]) -> bool:
    return (str(case["norm"]), str(case["activation"]), str(case["pooling"])) == ("instancenorm", "relu", "avgpooling")


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
