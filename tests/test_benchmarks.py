"""The rivals are the real thing, and the suites run and refuse to print a speed when a check fails."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import experts as experts_suite
from benchmarks import harness, rivals
from benchmarks import matching as matching_suite
from benchmarks import scoring as scoring_suite
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
    images, labels = training_suite.load_images(None, 24)
    job = training_suite.Job(images, labels, 8)
    plain = job.plain_gsam(False) - job.start
    assert (
        relative_error(job.ours(GSAM(0.01, rho=0.01, alpha=0.3), "cpu") - job.start, plain) < training_suite.TOLERANCE
    )
    assert relative_error(job.plain_gsam(True) - job.start, plain) < training_suite.TOLERANCE


@pytest.mark.parametrize("part", [part for parts in matching_suite.PARTS.values() for part in parts])
def test_both_sides_of_the_matching_suite_end_alike(part):
    require_native()
    case = matching_suite.Case(part, 2, batch_real=5, model="ConvNetD2W16", lr_init=0.3)
    plain = matching_suite.RIVALS["loop over classes"](case, part)
    for name in ("ours", "loop over classes, tuned"):
        assert relative_error(matching_suite.RIVALS[name](case, part), plain) < 1e-3, name


def test_an_iteration_is_put_together_from_its_parts():
    parts = {"dm update": 2.0, "dsa update": 3.0, "dsa epoch": 0.5}
    rows = [
        {"part": part, "rival": rival, "seconds": {"median": seconds}}
        for part, seconds in parts.items()
        for rival in matching_suite.RIVALS
    ]
    assert {row["seconds"] for row in matching_suite.whole("dm", rows, 10)} == {2.0}
    assert {row["seconds"] for row in matching_suite.whole("dsa", rows, 10)} == {10 * 3.0 + 9 * 50 * 0.5}


@pytest.mark.slow
def test_the_unroll_suite_runs_and_writes_its_evidence(tmp_path, monkeypatch, capsys):
    require_native()
    path = tmp_path / "result.json"
    arguments = ["unroll", "--batches", "2", "--rounds", "1", "--no-memory", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    unroll_suite.main()
    assert "cpu high, recompute" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["machine"]["torch"] and content["machine"]["commit"]
    assert [row["rival"] for row in content["rows"]] == list(unroll_suite.RIVALS)


@pytest.mark.slow
def test_the_training_suite_runs_and_writes_its_evidence(tmp_path, monkeypatch, capsys):
    require_native()
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["training", "--images", "40", "--rounds", "1", "--json", str(path)])
    training_suite.main()
    assert "evaluation" in capsys.readouterr().out
    assert {row["suite"] for row in json.loads(path.read_text())["rows"]} == {"experts", "evaluation"}


@pytest.mark.parametrize("part", ["el2n", "grand"])
def test_the_scoring_rivals_compute_the_same_scores(part, golden):
    require_native()
    case = scoring_suite.Case(300, 7, features=part == "grand")
    for name, run in scoring_suite.RIVALS[part].items():
        if scoring_suite.scores(name):
            assert relative_error(run(case), case.truth()) < 1e-6, name
    known = {name: torch.from_numpy(array) for name, array in golden("scores.npz").items()}
    inputs = known["logits"], known["labels"]
    for rival in (scoring_suite.eager_el2n, scoring_suite.eager_el2n_in_place):
        assert relative_error(rival(*inputs), known["el2n"]) < 1e-12
    for rival in (scoring_suite.eager_grand, scoring_suite.materialised_grand):
        assert relative_error(rival(*inputs, known["embedding"]), known["grand"]) < 1e-12


@pytest.mark.slow
def test_the_scoring_suite_runs_piece_by_piece(tmp_path, monkeypatch, capsys):
    require_native()
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index in range(6):
                pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
    path = tmp_path / "result.json"
    pieces = [["--parts", "el2n", "grand", "--sizes", "500x10"], ["--parts", "memory", "--sizes", "500x10"]]
    pieces += [["--parts", "end-to-end", "--data", f"imagefolder:{folder}"], pieces[0]]
    for piece in pieces:
        monkeypatch.setattr(sys, "argv", ["scoring", "--rounds", "1", "--json", str(path), *piece])
        scoring_suite.main()
    rows = json.loads(path.read_text())["rows"]
    # Two parts of six rivals, the memory of three each, and two ways through the images; nothing twice.
    assert len(rows) == 12 + 6 + 2
    assert str(tmp_path) not in path.read_text(), "a path of this machine in the result"
    assert "images/s" in capsys.readouterr().out


def test_no_speed_of_scoring_is_printed_when_the_check_fails(monkeypatch):
    monkeypatch.setattr(harness, "Worker", FakeWorker)
    with pytest.raises(SystemExit, match="eager torch: el2n is off by 1.9e"):
        scoring_suite.time_size("el2n", "500x10", 1)


class FakeWorker:
    """Answers at once; its result is as wrong as it is told to be."""

    def __init__(self, module: str, name: str, *arguments: str) -> None:
        self.name = name

    def ask(self, request: str) -> str:
        if request == "check":
            return "1.9"
        if request.startswith("compare"):
            return "1.9" if self.name == "functional" else "1e-7"
        return "0.1" if request == "time" else "saved"

    def close(self) -> None:
        pass


def test_no_speed_is_printed_when_the_check_fails(monkeypatch):
    monkeypatch.setattr(harness, "Worker", FakeWorker)
    with pytest.raises(SystemExit, match="functional: image gradient is off by 1.9e"):
        unroll_suite.time_batch(2, 1)


def test_workers_take_turns_and_report_their_death():
    asked: list[str] = []

    class Turn(FakeWorker):
        def ask(self, request: str) -> str:
            asked.append(self.name)
            return str(len(asked))

    samples = harness.alternate({"a": Turn("m", "a"), "b": Turn("m", "b")}, rounds=2)  # type: ignore[dict-item]
    assert asked == ["a", "b"] * 3 and samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert harness.summary([3.0, 1.0, 2.0], scale=10) == {"median": 20.0, "min": 10.0, "max": 30.0, "n": 3}
    dead = harness.Worker("benchmarks.unroll", "no such rival", "1", "1")
    with pytest.raises(RuntimeError, match="ended with status"):
        dead.ask("time")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts bytes with /proc")
def test_distilling_reads_a_fiftieth_of_what_replay_buffers_cost():
    whole, *ours = experts_suite.count_bytes(parameters=2000)
    assert whole["bytes"] > 100 * 10 * 101 * 2000 * 4
    assert [row["scheme"] for row in ours] == ["float32", "float16", "bfloat16-delta"]
    assert min(row["times_fewer"] for row in ours) > 50 and ours[1]["times_fewer"] > 95


def test_both_sides_of_an_expert_epoch_end_alike():
    images, labels = training_suite.load_images(None, 24)
    job = experts_suite.PublishedJob(images, labels, 8)
    ends = {name: run(job) - job.start for name, run in experts_suite.RIVALS.items()}
    assert float(ends["ours"].norm()) > 1e-3
    for name in ("plain torch, tuned", "ours"):
        assert harness.relative_error(ends[name], ends["plain torch"]) < 5e-2, name
