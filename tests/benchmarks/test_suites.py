"""The rivals are the real thing, and the suites run and refuse to print a speed when a check fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as runner
from benchmarks import augmentation as augmentation_suite
from benchmarks import criteria as criteria_suite
from benchmarks import end_to_end as end_to_end_suite
from benchmarks import experts as experts_suite
from benchmarks import harness, plots, published, report, rivals
from benchmarks import matching as matching_suite
from benchmarks import scoring as scoring_suite
from benchmarks import training as training_suite
from benchmarks import unroll as unroll_suite
from benchmarks.registry import suites
from pad_fast import DSA, ConvNet, ParameterMask
from pad_fast.data.augment import OPERATIONS
from pad_fast.evaluation import AccuracyRow
from pad_fast.models import FlatNetwork
from pad_fast.training.optimizers import GSAM

from ..support.comparison import relative_error
from ..support.golden import arguments_of, network_of
from ..support.native import require_native
from ..support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("tuned", [False, True], ids=["plain", "tuned"])
@pytest.mark.parametrize("name", ["gray_28px", "variant_groupnorm_relu_avgpooling", "loss_mask", "depth_mask"])
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
        mask=given["mask"],
    )
    assert float(loss) == pytest.approx(float(case["loss"]), rel=1e-9)
    for grad, key in zip(grads, ("grad_images", "grad_label_logits", "grad_syn_lr"), strict=True):
        assert relative_error(grad, torch.as_tensor(case[key])) < 1e-9, key


class Meta:
    """Differentiable SGD as TorchOpt and higher offer it, as far as the suite asks for it."""

    def __init__(self, module: torch.nn.Module, lr: torch.Tensor) -> None:
        self.owners = [(part, name) for part in module.modules() for name in part._parameters]
        self.lr = lr

    def step(self, loss: torch.Tensor) -> None:
        now = [owner._parameters[name] for owner, name in self.owners]
        for (owner, name), p, g in zip(
            self.owners, now, torch.autograd.grad(loss, now, create_graph=True), strict=True
        ):
            owner._parameters[name] = p - self.lr * g


@contextmanager
def innerloop_ctx(model, opt, *, override):
    ((group,), (rate,)) = opt.param_groups, override["lr"]
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))
    yield model, Meta(model, rate)


@pytest.mark.parametrize("mask", [ParameterMask.none(), ParameterMask.depth(0.5), ParameterMask.loss(0.5)], ids=repr)
@pytest.mark.parametrize("library", rivals.LIBRARIES)
def test_libraries_are_used_so_that_the_gradient_is_right(library, mask, monkeypatch):
    """With a stand-in where the library is not installed."""
    if not rivals.installed(library):
        stand_in = SimpleNamespace(MetaSGD=Meta, innerloop_ctx=innerloop_ctx)
        monkeypatch.setitem(sys.modules, library, stand_in)
    torch.manual_seed(0)
    module = ConvNet(channels=1, classes=3, width=4, depth=1, resolution=8).double()
    start = FlatNetwork(module).initial() + 0.1
    target, images, labels = start + 0.1 * torch.randn_like(start), torch.randn(6, 1, 8, 8).double(), torch.randn(6, 3)
    batches = [torch.tensor([0, 2, 4]), torch.arange(6), torch.tensor([5, 1])]
    given = (start, target, images, labels.double(), torch.tensor(0.3, dtype=torch.float64), batches)
    before = FlatNetwork(module).initial()
    loss, got = rivals.library_unroll(library, module, *given, mask=mask)
    truth, expected = rivals.plain_unroll(module, *given, mask=mask)
    assert float(loss) == pytest.approx(float(truth), rel=1e-12)
    assert all(relative_error(one, other) < 1e-10 for one, other in zip(got, expected, strict=True))
    assert torch.equal(FlatNetwork(module).initial(), before)


def test_a_library_that_is_not_installed_has_a_row_that_says_so(monkeypatch, capsys):
    asked: list[list[str]] = []
    monkeypatch.setattr(unroll_suite, "installed", lambda name: name != "higher")
    monkeypatch.setattr(unroll_suite, "time_point", lambda *point: asked.append(point[-2]) or [])
    monkeypatch.setattr(harness, "gemm_peak", lambda: 100.0)
    unroll_suite.main(
        ["--points", "2:1", "--memory", "--masks", "none", "--rivals", "plain loop", "torchopt", "higher"]
    )
    assert "higher                not installed\n" in capsys.readouterr().out
    assert asked == [["plain loop", "torchopt"]]


def test_the_plain_gsam_epoch_gives_the_golden_weights(golden):
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
def test_the_quick_run_goes_through_every_suite(tmp_path, capfd):
    require_native()
    assert runner.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    names = [suite.name for suite in suites().values() if suite.quick is not None]
    contents = {name: json.loads((tmp_path / f"{name}-cpu.json").read_text()) for name in names}
    for name, content in contents.items():
        assert content["machine"]["torch"] and content["machine"]["commit"] and content["rows"], name
        assert f"{name}: " in printed
    unroll = contents["unroll"]
    assert [row["rival"] for row in unroll["rows"]] == ["plain loop", "cpu high, recompute"]
    assert unroll["rows"][0]["ms_per_step"]["samples"]
    # The plain loop keeps every step's activations, several times a parameter vector of 1.2 MiB.
    assert {row["rival"]: row["mib_per_step"] > 5 for row in unroll["growth"]} == {
        "plain loop": True,
        "cpu high, recompute": False,
    }
    assert {row["suite"] for row in contents["training"]["rows"]} == {"experts", "evaluation"}
    assert (tmp_path / "unroll-memory-steps.png").exists()


def test_a_suite_that_fails_its_check_fails_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda words: subprocess.CompletedProcess(words, "scoring" in str(words)))
    assert runner.main(["--only", "scoring", "training", "--out", str(tmp_path)]) == 1
    assert "failed: scoring\n" in capsys.readouterr().out


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_plain_dsa_is_the_published_augmentation(golden, operation, siamese):
    data = golden("dsa_gray28.npz")
    images = torch.from_numpy(data["x"])
    cases = [key for key in data if key.startswith(f"{operation}_{'siamese' if siamese else 'seed'}")]
    assert cases
    for key in cases:
        seed = int(re.findall(r"\d+$", key)[0])
        augment = DSA(operation, mode="reference", siamese=siamese)
        source = {"seed": seed} if siamese else {"generator": torch.Generator().manual_seed(seed)}
        values = augment.draw(len(images), images.shape, **source).values
        np.testing.assert_allclose(rivals.plain_dsa(images, operation, values).numpy(), data[key], rtol=0, atol=1e-5)


def test_no_speed_of_augmentation_is_printed_when_the_check_fails(monkeypatch):
    monkeypatch.setattr(augmentation_suite, "plain_dsa", lambda images, operation, values: 2 * images)
    with pytest.raises(SystemExit, match="color, per image is off by .*; no speed is reported"):
        augmentation_suite.measure(3, 8, 1)


def test_no_time_is_printed_for_a_set_that_teaches_nothing(monkeypatch, tmp_path):
    class Row:
        name, mean, std = "PAD", 12.0, 0.5

    def distil(*args, out, **settings):
        (Path(out) / "timing.json").write_text('{"environment": {}, "stages": {}, "finished": true}')
        return SimpleNamespace(evaluation=[Row])

    monkeypatch.setattr(end_to_end_suite.pad_fast, "distill", distil)
    with pytest.raises(SystemExit, match=r"cpu: the distilled set reaches 12.0%; no speed is reported"):
        end_to_end_suite.run("cpu", 1, 0, {})


def test_curves_are_drawn_where_they_belong():
    picture = plots.log_log({"a": [(1, 1), (10, 100)]}, title="t", x_label="x", y_label="y")
    colours = {colour for _, colour in picture.getcolors(maxcolors=1 << 20)}
    assert plots._COLOURS[0] in colours and plots._COLOURS[1] not in colours
    pixels = np.asarray(picture)
    rows, columns = np.nonzero((pixels == plots._COLOURS[0]).all(-1) & (np.arange(pixels.shape[1]) < 630))
    # The marker of the lowest point is at the bottom left, that of the highest two whole decades up at the right.
    assert columns[rows.argmax()] < 130 and columns[rows.argmin()] > 590
    assert rows.max() > 450 and rows.min() < 60
    with pytest.raises(ValueError, match="positive"):
        plots.log_log({"a": [(1, 0)]}, title="t", x_label="x", y_label="y")


def test_growth_is_the_slope_between_the_ends():
    memory = [{"rival": "a", "batch": 10, "steps": steps, "peak_mib": 100 + 3 * steps} for steps in (20, 5, 80)]
    memory.append({"rival": "b", "batch": 10, "steps": 5, "peak_mib": 7})
    assert unroll_suite.growth(memory) == [{"rival": "a", "batch": 10, "from": 5, "to": 80, "mib_per_step": 3.0}]


def test_a_study_of_an_hour_is_no_part_of_the_full_run(tmp_path, capsys):
    assert runner.main(["--only", "criteria", "--out", str(tmp_path)]) == 0
    assert "criteria: left out, it takes too long" in capsys.readouterr().out and not list(tmp_path.iterdir())


class OneSecondEach:
    """Iterations on a clock that nothing else moves; more of them and a smaller images' lr are more accurate."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(criteria_suite, "time", SimpleNamespace(process_time=lambda: self.now))
        monkeypatch.setattr(criteria_suite.Study, "start", lambda study, config: self.start(config))
        monkeypatch.setattr(criteria_suite, "accuracy", self.accuracy)
        self.used = []

    def start(self, config):
        state = SimpleNamespace(iteration=0, lr=torch.tensor(0.5))
        return criteria_suite.Run(config, None, self, state, preparation=3.0 if config.uses_experts else 0.0)

    def begin(self, state):
        self.now += 1
        state.iteration += 1

    def settle(self, state, pending):
        return {}

    def accuracy(self, state, config, normalization, data, *, seed, networks, lr, row):
        self.used.append((config.method, seed, config.lr_img, config.mask, config.prune, lr, row))
        base = state.iteration - config.lr_img / 1000 + (lr or 0)
        return AccuracyRow(row, config.model, tuple(base + index for index in range(networks)))


def test_criteria_get_equal_time_and_the_settings_of_another_seed(tmp_path, monkeypatch):
    fake, result = OneSecondEach(monkeypatch), tmp_path / "criteria.json"

    def run(*arguments):
        criteria_suite.main([*arguments, "--search-seconds", "2", "--search-networks", "1", "--json", str(result)])
        return json.loads(result.read_text())["rows"]

    def table(part, rows):
        return [" | ".join(cells) for cells in criteria_suite.TABLES[part](rows)[1]]

    rows = run("--parts", "search")
    tried = {
        method: len({row["changes"] for row in rows if row["method"] == method}) for method in criteria_suite.COMPARED
    }
    assert tried == {"random": 1, "dm": 3, "dc": 3, "dsa": 3, "pad": 3}
    assert {seed for _, seed, *_ in fake.used} == {0}
    fake.used.clear()

    rows = run("--parts", "compare", "--methods", "random", "dm", "pad", "--seconds", "2", "5", "--networks", "2")
    # The least images' lr and the larger rate are best here; PAD's rate is its own.
    assert {(method, lr_img, lr, row) for method, _, lr_img, _, _, lr, row in fake.used} == {
        ("dm", 10.0, 0.03, "random real"),
        ("dm", 3.0, 0.03, "distilled"),
        ("pad", 10.0, None, "distilled"),
    }
    assert table("compare", rows) == [
        "1 | 0 | random real | 0 | 0 | 0.5 ± 0.6 (0.5, 0.5)",
        "1 | 2 | DM | 0 | 2 | 2.5 ± 0.6 (2.5, 2.5)",
        "1 | 2 | PAD, experts given | not counted | 2 | 2.5 ± 0.6 (2.5, 2.5)",  # the experts alone take 3 seconds
        "1 | 5 | DM | 0 | 5 | 5.5 ± 0.6 (5.5, 5.5)",
        "1 | 5 | PAD | 3 | 2 | 2.5 ± 0.6 (2.5, 2.5)",
        "1 | 5 | PAD, experts given | not counted | 5 | 5.5 ± 0.6 (5.5, 5.5)",
    ]
    assert len([line for line in table("search", rows) if "**" in line]) == len(criteria_suite.COMPARED)
    fake.used.clear()

    filters = ("--filtered", "dc", "--mask", "depth:0.25", "--prune", "hardest:0.1", "--seconds", "4")
    rows = run("--parts", "filters", *filters, "--networks", "1", "--seeds", "7")
    assert [used[3:5] for used in fake.used] == [("none", "none"), ("depth", "none"), ("none", "hardest:0.1")]
    assert table("filters", rows)[2] == "1 | DC | hardest 0.1 | none | 4 | 4.0 ± 0.0 | +0.0"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_the_documents_are_those_of_the_kept_results(document):
    text = document.read_text(encoding="utf-8")
    assert report.updated(text) == text, f"python -m benchmarks.report --update {document.name}"


def test_a_stale_table_is_found_and_written_anew(tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- table: readme -->\nold\n<!-- end -->\nafter\n")
    assert report.main(["--check", str(document)]) == 1 and "old" in document.read_text()
    assert report.main(["--update", str(document)]) == 0
    assert report.main(["--check", str(document)]) == 0
    text = document.read_text()
    assert "old" not in text and "AMX" in text and text.startswith("before\n") and text.endswith("after\n")


def test_what_is_alive_at_once_is_counted():
    def run():
        first = torch.ones(1000)  # 4,000 bytes
        second = first + 1
        del first
        return second.view(10, 100) * 2  # two of the three at any time

    assert published.alive(run) == 8000


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
        unroll_suite.time_point(2, 1, "none", 1, ["functional"], 100.0)


def test_workers_take_turns_and_report_their_death():
    asked: list[str] = []

    class Turn(FakeWorker):
        def ask(self, request: str) -> str:
            asked.append(self.name)
            return str(len(asked))

    samples = harness.alternate({"a": Turn("m", "a"), "b": Turn("m", "b")}, rounds=2)  # type: ignore[dict-item]
    assert asked == ["a", "b"] * 3 and samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert harness.summary([3.0, 1.0, 2.0], scale=10) == {"median": 20.0, "min": 10.0, "max": 30.0, "n": 3} | {
        "samples": [30.0, 10.0, 20.0]
    }
    dead = harness.Worker("benchmarks.unroll", "no such rival", "1", "1", "none")
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
