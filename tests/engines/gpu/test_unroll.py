"""Unrolled gradients on a GPU against the golden files and the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast import ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.errors import BackendError

from ...support.comparison import relative_error
from ...support.golden import CASES, arguments_of, network_of, served_natively
from ...support.gpu import DOUBLE, GPU, SMALL, SOME, STEP, assert_same, gradients, needs_gpu, problem_of

pytestmark = needs_gpu


@pytest.mark.parametrize("name", CASES)
def test_golden_gradients_in_double(engine, golden, name):
    case = golden(f"unroll_{name}.npz")
    net = network_of(case).to(GPU)
    arguments = {k: v.to(GPU) if isinstance(v, Tensor) else v for k, v in arguments_of(case).items()}
    if not served_natively(case):
        with pytest.raises(BackendError, match="instance norm, relu and avg pooling, not"):
            trajectory_matching_loss(net, backend="triton", **arguments)
        return
    for _ in range(3):  # plainly, recorded, replayed
        for key in SOME:
            arguments[key] = arguments[key].detach().requires_grad_()
        with record_backends() as used:
            loss = trajectory_matching_loss(net, backend="triton", **arguments)
        assert used == ["triton"]
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(case["loss"]), rel=DOUBLE)
        for key, expected in (("images", "grad_images"), ("labels", "grad_label_logits"), ("lr", "grad_syn_lr")):
            assert relative_error(arguments[key].grad, torch.as_tensor(case[expected])) < DOUBLE, key
    assert engine.graphs.recorded == 2


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["plain", "width128", "gray_28px"])
def test_golden_first_steps_in_single_precision(engine, golden, name, precision):
    """One student step, because ReLUs near zero switch and carry any two float32 computations apart."""
    case = golden(f"unroll_{name}.npz")
    exact = {k: v.to(GPU) if isinstance(v, Tensor) else v for k, v in arguments_of(case).items()}
    exact["batches"] = exact["batches"][:1]
    single = {k: v.float() if isinstance(v, Tensor) else v for k, v in exact.items()}
    truth = gradients({"model": network_of(case).to(GPU), **stacked(exact)}, gradient="unroll")
    ours = gradients(
        {"model": network_of(case).to(GPU).float(), **stacked(single)}, backend="triton", precision=precision
    )
    assert_same(ours, truth, STEP[precision])
    for kind, got, expected in zip(("loss", *SOME), ours, truth, strict=True):
        print(f"error {name} {precision} {kind} {relative_error(got, expected):.1e}")


def stacked(arguments: dict[str, Any]) -> dict[str, Any]:
    """With a leading axis for one trajectory."""
    changed = {name: arguments[name][None] for name in ("theta_start", "theta_target")}
    return {**arguments, **changed, "lr": arguments["lr"].reshape(())}


def fuzzed(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    draws = torch.Generator().manual_seed(100 + seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(0, len(values), (1,), generator=draws))]

    resolution = pick(8, 9, 16, 28, 31, 32)
    net = {
        "channels": pick(1, 2, 3, 3, 7, 8, 17),
        "resolution": resolution,
        "depth": pick(1, 2, 3),
        "width": pick(3, 8, 17, 32, 64, 128),
        "classes": pick(2, 10, 100, 200),
    }
    run = {"count": pick(1, 2, 7, 33), "stacked": pick(1, 1, 2, 5), "hard": pick(False, True), "seed": seed}
    return net, run


@pytest.mark.parametrize("seed", range(14))
def test_fuzzed_shapes_in_double(engine, seed):
    net, run = fuzzed(seed)
    problem = problem_of(net, steps=3, **run)
    truth = gradients(problem, gradient="unroll")
    for cache in (0, 1 << 33, 1 << 33):
        assert_same(gradients(problem, backend="triton", cache=cache), truth, DOUBLE)


@pytest.mark.parametrize("mask", [ParameterMask.none(), ParameterMask.loss(0.4), ParameterMask.layers(1)], ids=repr)
def test_masks(engine, mask):
    problem = {**problem_of(SMALL, stacked=3), "mask": mask}
    assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"), DOUBLE)
