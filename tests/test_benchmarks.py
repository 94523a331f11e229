"""The rivals are the real thing, and the suites run and refuse to print a speed when a check fails."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import harness, rivals
from benchmarks import training as training_suite
from benchmarks import unroll as unroll_suite
from pad_fast.models import FlatNetwork
from pad_fast.optimizers import GSAM

from .compare import relative_error
from .conftest import require_native
from .test_matching_golden import arguments_of, network_of


@pytest.mark.parametrize("tuned", [False, True], ids=["plain", "tuned"])
@pytest.mark.parametrize("name", ["gray_28px", "variant_groupnorm_relu_avgpooling", "plain"])
def test_the_plain_loop_gives_the_golden_gradients(golden, name, tuned):
    case = golden(f"unroll_{name}.npz")
    given = arguments_of(case)
    loss, grads = rivals.plain_unroll(
        network_of(case),
        given["theta_start"],
        given["theta_target"],
        given["images"],
        given["labels"],
        given["lr"],
        given["batches"],
        tuned=tuned,
    )
    rivals.keep_freed_memory(False)
    assert float(loss) == pytest.approx(float(case["loss"]), rel=1e-9)
    for grad, key in zip(grads, ("grad_images", "grad_label_logits", "grad_syn_lr"), strict=True):
        assert relative_error(grad, torch.as_tensor(case[key])) < 1e-9, key


def test_the_plain_gsam_epoch_gives_the_golden_weights(golden):
    from pad_fast import ConvNet

    case = golden("gsam.npz")
    module = ConvNet(width=int(case["width"]), depth=int(case["depth"])).double()
    network = FlatNetwork(module)
    theta = torch.from_numpy(case["theta"])
    network.load(theta[0])
    images = torch.from_numpy(case["images"])
    settings = {"lr": float(case["lr"]), "rho": float(case["rho"]), "alpha": float(case["alpha"])}
    for step in range(4):
        labels = torch.from_numpy(case["labels"][step])
        rivals.plain_gsam_epoch(module, images[step], labels, [torch.arange(16)], lambda x: x, **settings)
        assert relative_error(network.initial() - theta[0], theta[step + 1] - theta[0]) < 1e-9


def test_both_sides_of_the_training_suite_end_alike():
    require_native()
    images, labels, _ = training_suite.load_images(None, 24)
    job = training_suite.Job(images, labels, 8)
    plain = job.plain_gsam(False) - job.start
    assert (
        relative_error(job.ours(GSAM(0.01, rho=0.01, alpha=0.3), "cpu") - job.start, plain) < training_suite.TOLERANCE
    )
    assert relative_error(job.plain_gsam(True) - job.start, plain) < training_suite.TOLERANCE
    rivals.keep_freed_memory(False)


@pytest.mark.slow
def test_the_unroll_suite_runs_and_writes_its_evidence(tmp_path, monkeypatch, capsys):
    require_native()
    monkeypatch.setattr(unroll_suite, "steps_for", lambda batch: 2)
    path = tmp_path / "result.json"
    arguments = ["unroll", "--batches", "2", "--rounds", "1", "--no-memory", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    unroll_suite.main()
    assert "cpu high, recompute" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert (
        content["machine"]["torch"]
        and content["machine"]["commit"]
        and len(content["rows"]) == len(unroll_suite.RIVALS)
    )
    rivals.keep_freed_memory(False)


def test_no_speed_is_printed_when_the_check_fails(monkeypatch, capsys):
    require_native()
    monkeypatch.setattr(unroll_suite, "steps_for", lambda batch: 1)
    broken = dict(unroll_suite.RIVALS)
    broken["functional"] = lambda case: tuple(-g for g in case.plain(False))
    monkeypatch.setattr(unroll_suite, "RIVALS", broken)
    with pytest.raises(SystemExit, match="no speed is reported"):
        unroll_suite.time_batch(2, 1)
    rivals.keep_freed_memory(False)


def test_alternation_and_summary():
    order: list[str] = []
    samples = harness.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3 and [len(s) for s in samples.values()] == [2, 2]
    assert harness.summary([3.0, 1.0, 2.0], scale=10) == {"median": 20.0, "min": 10.0, "max": 30.0, "n": 3}
