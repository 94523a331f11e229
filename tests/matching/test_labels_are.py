"""Soft labels given as probabilities, by every engine, against autograd through the usual loop."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from pad_fast import trajectory_matching_loss
from pad_fast.engines import record_backends, register
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.errors import InputError
from pad_fast.models import ConvNet
from pad_fast.runtime import extension

from ..support.comparison import relative_error
from ..support.exactness import body, problem, usual_loop

KINDS = {
    "distributions": lambda y: y.softmax(-1),
    "with zeros": lambda y: y.clamp_min(0) / y.clamp_min(0.1).sum(-1, keepdim=True),
    "of any sum": lambda y: 1.7 * y,
    "one-hot": lambda y: nn.functional.one_hot(y.argmax(-1), y.shape[-1]).double(),
}


def convnet() -> nn.Module:
    torch.manual_seed(3)
    return ConvNet(channels=1, classes=3, width=5, depth=2, resolution=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "autograd", "triton", "unroll"])
def test_they_count_as_they_are(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "cpu" and not extension.available():
        pytest.skip("the compiled extension is missing")
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        monkeypatch.setattr("pad_fast.engines.registry._engines", {})
        register(TritonEngine(Operations(naive=True)))
    how = {"gradient": "unroll"} if backend == "unroll" else {"backend": backend}
    network = convnet().double()
    given = problem(network)
    given["labels"] = KINDS[kind](given["labels"].detach()).requires_grad_()
    leaves = [given[name] for name in ("images", "labels", "lr")]
    reference = usual_loop(copy.deepcopy(network), **given, labels_are="probabilities")
    expected = torch.autograd.grad(reference, leaves)
    with record_backends() as used, warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = trajectory_matching_loss(network, **given, labels_are="probabilities", **how)
    assert used == ["autograd" if backend == "unroll" else backend]
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-12)
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert relative_error(found, wanted) < 1e-10


def test_several_trajectories_and_fixed_labels() -> None:
    network = body().double()
    given = problem(network)
    labels = given["labels"].detach().softmax(-1)
    ends = (given["theta_start"], given["theta_start"] + 0.1)
    targets = (given["theta_target"], given["theta_target"] - 0.2)
    stacked = {**given, "labels": labels, "theta_start": torch.stack(ends), "theta_target": torch.stack(targets)}
    found = trajectory_matching_loss(network, **stacked, labels_are="probabilities")
    for k, (start, target) in enumerate(zip(ends, targets, strict=True)):
        alone = {**given, "labels": labels, "theta_start": start, "theta_target": target}
        expected = usual_loop(copy.deepcopy(network), **alone, labels_are="probabilities")
        assert float(found[k].detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_what_can_hardly_be_logits_is_mentioned_and_the_advice_works() -> None:
    network = body().double()
    given = problem(network)
    onehot = nn.functional.one_hot(torch.arange(6) % 3, 3).double()

    def loss(labels: Tensor, **how: str) -> float:
        return float(trajectory_matching_loss(network, **{**given, "labels": labels}, **how).detach())

    with pytest.warns(UserWarning, match="is a probability distribution.*labels_are='probabilities'.*or 'logits'"):
        flattened = loss(onehot)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss(onehot, labels_are="logits") == flattened
        hard = loss(onehot.argmax(1))
        assert loss(onehot, labels_are="probabilities") == pytest.approx(hard, rel=1e-12)
    assert abs(hard - flattened) > 1e-3 * hard


def test_an_unknown_kind_is_refused() -> None:
    network = body().double()
    with pytest.raises(InputError, match="labels_are='probs' is unknown; use one of logits, probabilities"):
        trajectory_matching_loss(network, **problem(network), labels_are="probs")
