"""Experts, score networks and evaluation networks that go through their steps together come out as one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pad_fast import Curriculum, Difficulty, DistilledDataset, ExpertStore, evaluate, score, train_experts
from pad_fast.data import DSA, fit_normalization
from pad_fast.engines import record_backends, registry
from pad_fast.engines.autograd import AutogradEngine
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.errors import InputError, StoreError
from pad_fast.evaluation.network import EvaluationRecipe, Network, train_networks
from pad_fast.experts import train as train_module
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime import distributed
from pad_fast.runtime.device import sent
from pad_fast.runtime.distributed import Group
from pad_fast.runtime.rng import generator
from pad_fast.scoring.forgetting import Forgetting
from pad_fast.scoring.formulas import class_order
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer, TrainingStreams, in_groups, together

from ..support.comparison import relative_error
from ..support.small import MODEL, QUIET, SIZES, small_data

CPU = torch.device("cpu")
ALL = "color_crop_cutout_flip_scale_rotate"
EXPERTS: dict[str, Any] = {"model": MODEL, "experts": 5, "epochs": 4, "batch": 10, "lr": 0.05, "optimizer": "sgd"}
EXPERTS |= {"dsa": ALL, "progress": QUIET}
SCORES = {"model": MODEL, "networks": 5, "epochs": 3, "batch": 16, "lr": 0.03, "momentum": 0.5, "progress": QUIET}
ROWS = {"models": (MODEL,), "repeats": 3, "epochs": 5, "full_epochs": 2, "batch": 4, "progress": QUIET}
# Of the movement of weights in float32 over a few epochs, where sums are taken in another order. Worst seen: 9e-7.
TOLERANCE = 1e-5


class Watched:
    """Writes down K and the batch size of every stacked step, and what was augmented and tested in stacks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.steps: list[tuple[int, int]] = []
        self.tests: list[int] = []
        self.drawn: list[set[str]] = []

    def stacked_loss_grad_logits(self, task: Any, theta: Tensor, images: Tensor, labels: Tensor) -> Any:
        self.steps.append((len(theta), images.shape[1]))
        return super().stacked_loss_grad_logits(task, theta, images, labels)  # type: ignore[misc]

    def stacked_forward(self, task: Any, theta: Tensor, images: Tensor) -> Tensor:
        self.tests.append(len(theta))
        return super().stacked_forward(task, theta, images)  # type: ignore[misc]

    def augment_each(self, images: Tensor, draws: Sequence[Any]) -> Tensor:
        self.drawn.append({draw.operation for draw in draws})
        return super().augment_each(images, draws)  # type: ignore[misc]


class Oracle(Watched, AutogradEngine):
    """torch, three networks at a time."""

    name = "oracle"

    def together(self, task: Any, batch: int) -> int:
        return 3


class Kernels(Watched, TritonEngine):
    """The kernels, or their twins."""


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    engine = Oracle()
    monkeypatch.setitem(registry._engines, engine.name, engine)
    return engine


@pytest.fixture(params=["twins"])
def kernels(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Kernels:
    pytest.importorskip("triton", reason="Triton is not installed")
    if request.param == "interpreted" and torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a GPU")
    engine = Kernels(Operations(naive=True) if request.param == "twins" else None)
    monkeypatch.setitem(registry._engines, "triton", engine)
    return engine


def difficulty() -> Difficulty:
    data = small_data()
    scores = torch.rand(len(data.train_labels), generator=torch.Generator().manual_seed(2))
    return Difficulty(scores, class_order(scores, data.train_labels, data.classes), "el2n", data.fingerprint)


def assert_moved_alike(store: ExpertStore, truth: ExpertStore, index: int) -> None:
    """An expert begins with the same weights, and every epoch moves them in the same way."""
    assert store.kept == truth.kept and torch.equal(store.snapshot(index, 0), truth.snapshot(index, 0))
    for epoch in truth.kept[1:]:
        moved = [each.snapshot(index, epoch) - each.snapshot(index, 0) for each in (store, truth)]
        assert relative_error(*moved) < TOLERANCE, (index, epoch)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- experts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["gsam", "sgd"])
def test_experts_together_are_those_one_by_one(tmp_path, oracle, optimizer):
    """With a curriculum whose epochs differ in size, augmentation, tests, and fewer snapshots.

    SGD gives the same bytes. GSAM's norms of rows are summed in another order than those of a vector.
    """
    curriculum = Curriculum(0.5, 1, 2, 3, 0.2, 0.4)
    settings = {**EXPERTS, "optimizer": optimizer, "curriculum": curriculum, "difficulty": difficulty()}
    settings |= {"test_every": 3, "keep": "0:2,-1", "rho": 0.05}
    train_experts(small_data(), out=tmp_path / "alone", backend="autograd", **settings)
    assert not oracle.steps
    with record_backends() as used:
        train_experts(small_data(), out=tmp_path / "together", backend="oracle", **settings)
    assert set(used) == {"oracle"}
    shown = [sum(len(range(*curriculum.span(epoch, size))) for size in SIZES) for epoch in range(4)]
    assert len(set(shown)) > 1 and all(count % 10 for count in shown), "epochs of other sizes, with short last batches"
    sizes = [size for count in shown for size in [10] * (count // 10) + [count % 10]]
    again = 2 if optimizer == "gsam" else 1  # GSAM evaluates every batch twice
    assert oracle.steps == [(many, size) for many in (3, 2) for size in sizes for _ in range(again)]
    assert oracle.tests == [3, 3, 2, 2], "after epoch 3 and the last"
    assert max(map(len, oracle.drawn)) > 1, "networks drew other operations for the same step"
    if optimizer == "sgd":
        assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    stores = [ExpertStore.open(tmp_path / name) for name in ("together", "alone")]
    for index in range(5):
        assert_moved_alike(*stores, index)
        facts = [store.facts(index) for store in stores]
        assert list(facts[0]["accuracy"]) == ["3", "4"] and facts[0]["accuracy"] == facts[1]["accuracy"]
        assert facts[0]["loss"] == pytest.approx(facts[1]["loss"], rel=1e-5)


def test_the_last_experts_are_fewer(tmp_path, oracle):
    """Of four, in groups of at most three: two and two. Another one later is alone, and takes no stacked step."""
    settings = {**EXPERTS, "epochs": 1}
    train_experts(small_data(), out=tmp_path / "alone", backend="autograd", **settings)
    train_experts(small_data(), out=tmp_path / "together", backend="oracle", **{**settings, "experts": 4})
    assert {many for many, _ in oracle.steps} == {2}
    taken = len(oracle.steps)
    train_experts(small_data(), out=tmp_path / "together", backend="oracle", **settings)
    assert len(oracle.steps) == taken
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_an_interrupted_group_leaves_no_claim_and_is_trained_again(tmp_path, oracle, monkeypatch):
    train_experts(small_data(), out=tmp_path / "alone", backend="autograd", **EXPERTS)
    original, epochs = Trainer.epoch, []

    def interrupted(self, *arguments):
        epochs.append(len(self.theta))
        if len(epochs) == 6:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_experts(small_data(), out=tmp_path / "out", backend="oracle", **EXPERTS)
    assert epochs == [3, 3, 3, 3, 2, 2]
    assert sorted(contents(tmp_path / "out")) == [*(f"expert_0000{i}.safetensors" for i in range(3)), "store.json"]
    train_experts(small_data(), out=tmp_path / "out", backend="oracle", **EXPERTS)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_what_others_have_claimed_comes_last(tmp_path, oracle, monkeypatch):
    """Held by somebody who gives it back during the first group; nobody waits with claims in hand."""
    train_experts(small_data(), out=tmp_path, backend="oracle", **{**EXPERTS, "experts": 1})
    claim = ExpertStore.open(tmp_path).claim(2)
    original, groups = train_module.ExpertTraining.train, []

    def train(self, numbers):
        groups.append(list(numbers))
        claim.release()
        return original(self, numbers)

    monkeypatch.setattr(train_module.ExpertTraining, "train", train)
    store = train_experts(small_data(), out=tmp_path, backend="oracle", **{**EXPERTS, "experts": 6})
    assert groups == [[1, 3, 4], [5, 2]] and len(store) == 6


def test_a_diverged_expert_of_a_group(tmp_path, oracle):
    with pytest.raises(StoreError, match="lower the expert learning rate"):
        train_experts(small_data(), out=tmp_path, backend="oracle", **{**EXPERTS, "lr": 1e25})
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


@pytest.mark.parametrize(("missing", "ranks", "expected"), [(20, 1, 3), (4, 1, 2), (5, 4, 2), (4, 4, 1), (1, 1, 1)])
def test_every_rank_gets_its_share_of_a_group(tmp_path, oracle, monkeypatch, missing, ranks, expected):
    monkeypatch.setattr(distributed, "group", lambda: Group(0, ranks))
    store = ExpertStore.create(tmp_path, parameter_count=3, epochs=1, metadata={"model": MODEL})
    network = NetworkSpec(MODEL, 1, 3, 8).build(0, "probe")
    assert train_module.experts_together(store, network, missing, 10, device=CPU, backend="oracle") == expected


def test_snapshots_leave_memory_to_others(tmp_path, oracle, monkeypatch):
    store = ExpertStore.create(tmp_path, parameter_count=1000, epochs=9, metadata={"model": MODEL})
    network = NetworkSpec(MODEL, 1, 3, 8).build(0, "probe")
    for free, expected in ((12, 3), (11, 2), (3, 1)):
        monkeypatch.setattr(train_module, "free_bytes", lambda _, free=free: free * store.bytes_per_expert)
        found = train_module.experts_together(store, network, 6, 10, device=CPU, backend="oracle")
        assert found == expected


@pytest.mark.parametrize(
    ("kernels", "optimizer"), [("twins", "gsam"), ("twins", "sgd"), ("interpreted", "gsam")], indirect=["kernels"]
)
def test_experts_together_on_the_kernels(tmp_path, kernels, optimizer):
    """A fifth of the images, so that interpreted steps are few."""
    settings = {**EXPERTS, "optimizer": optimizer, "experts": 3, "epochs": 1, "batch": 5}
    settings |= {"prune_rule": "hardest:0.8", "difficulty": difficulty()}
    with record_backends() as used:
        found = train_experts(small_data(), out=tmp_path / "together", backend="triton", **settings)
    assert set(used) == {"triton"}
    again = 2 if optimizer == "gsam" else 1
    assert kernels.steps == [(3, 5)] * again + [(3, 4)] * again
    assert len(kernels.drawn) == 2 and max(map(len, kernels.drawn)) > 1
    alone = train_experts(small_data(), out=tmp_path / "alone", backend="autograd", **settings)
    for index in range(3):
        assert_moved_alike(found, alone, index)
    ways = [alone.snapshot(index, 1) - alone.snapshot(index, 0) for index in range(2)]
    assert relative_error(*ways) > 0.1, "experts differ"


# -- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dsa", ["none", "color_crop"])
def test_score_networks_together_are_those_one_by_one(tmp_path, oracle, dsa):
    folders = {name: tmp_path / name for name in ("autograd", "oracle")}
    found = {
        name: score(small_data(), backend=name, dsa=dsa, networks_dir=folder, **SCORES)
        for name, folder in folders.items()
    }
    assert {many for many, _ in oracle.steps} == {2, 3} and {size for _, size in oracle.steps} == {16, 6}
    assert oracle.tests == [3, 2], "one pass scores them together as well"
    assert bool(oracle.drawn) == (dsa != "none")
    for name in ("scores", "variance", "forgetting"):
        assert torch.equal(getattr(found["oracle"], name), getattr(found["autograd"], name)), name
    assert float(found["oracle"].forgetting.max()) > 0 and float(found["oracle"].variance.min()) > 0
    # A repeated call trains what is missing.
    for number in (1, 4):
        (folders["oracle"] / f"network-000{number}.safetensors").unlink()
    oracle.steps.clear()
    again = score(small_data(), backend="oracle", dsa=dsa, networks_dir=folders["oracle"], **SCORES)
    assert {many for many, _ in oracle.steps} == {2} and torch.equal(again.scores, found["oracle"].scores)


def test_features_and_buffers_are_of_one_network_each(oracle):
    alone, together_ = (score(small_data(), method="grand", backend=name, **SCORES) for name in ("autograd", "oracle"))
    assert {many for many, _ in oracle.steps} == {2, 3} and not oracle.tests
    assert torch.equal(alone.scores, together_.scores)


def test_scores_on_the_kernels(kernels):
    settings = {**SCORES, "networks": 2, "epochs": 1}
    found = score(small_data(), backend="triton", **settings)
    assert set(kernels.steps) == {(2, 16), (2, 6)} and kernels.tests == [2]
    assert relative_error(found.scores, score(small_data(), backend="autograd", **settings).scores) < 1e-5


# -- evaluation -----------------------------------------------------------------------------------------------------


def distilled_set() -> DistilledDataset:
    data = small_data()
    white = fit_normalization(data, "mean-std")
    rows = torch.cat([data.images_of_class(label)[:2] for label in range(data.classes)])
    labels = data.train_labels[rows]
    soft = torch.nn.functional.one_hot(labels, data.classes).float() * 3
    config = {"model": MODEL, "method": "pad", "dsa": ALL}
    return DistilledDataset(white.apply(data.train_images[rows]), soft, labels, 0.05, white, config)


def test_evaluation_networks_together_are_those_one_by_one(tmp_path, oracle):
    """Networks of several rows share a stack where recipe, images and targets have the same shapes."""
    alone = evaluate(distilled_set(), small_data(), backend="autograd", robust=True, difficulty=difficulty(), **ROWS)
    settings = {**ROWS, "robust": True, "difficulty": difficulty(), "cache_dir": tmp_path}
    found = evaluate(distilled_set(), small_data(), backend="oracle", **settings)
    assert [(row.name, row.accuracies) for row in found.rows] == [(row.name, row.accuracies) for row in alone.rows]
    assert found.scores == alone.scores
    # Network 0 of the full set is the teacher and was there, so that two of its row were left.
    assert {many for many, _ in oracle.steps} == {2, 3} and {size for _, size in oracle.steps} == {4, 2}
    assert sum(many for many, size in oracle.steps if size == 2) == 3 * 5 * (len(found.rows) - 1) + 2 * 2
    oracle.steps.clear()
    again = evaluate(distilled_set(), small_data(), backend="oracle", **settings)
    assert not oracle.steps and again.rows == found.rows, "every network's result was kept"
    # More networks: only those that are missing, two of a row at a time.
    more = evaluate(distilled_set(), small_data(), backend="oracle", **{**settings, "repeats": 5, "robust": False})
    assert {many for many, _ in oracle.steps} <= {2, 3} and len(more.rows[0].accuracies) == 5
    assert [row.accuracies[:3] for row in more.rows] == [
        row.accuracies for row in found.rows if row.name in {row.name for row in more.rows}
    ]


def test_a_diverged_network_of_a_group_is_named(oracle):
    with pytest.raises(InputError, match=r"training on distilled diverged in epoch \d with learning rate 1e\+30"):
        evaluate(distilled_set(), small_data(), backend="oracle", baselines=False, lr=1e30, **ROWS)
    assert {many for many, _ in oracle.steps} == {3}


def test_evaluation_on_the_kernels(kernels, monkeypatch):
    """Logits of networks with images of their own, whose accuracy would hide small errors."""
    logits: list[Tensor] = []
    original = Trainer.predictions

    def predictions(self, images):
        logits.append(self.logits(images).reshape(-1, len(images), 3))
        return original(self, images)

    monkeypatch.setattr(Trainer, "predictions", predictions)
    settings = {**ROWS, "repeats": 2, "epochs": 3, "baselines": ("random",)}
    evaluate(distilled_set(), small_data(), backend="triton", **settings)
    assert set(kernels.steps) == {(2, 4), (2, 2)} and set(kernels.tests) == {2}
    together_ = torch.cat(logits)
    logits.clear()
    evaluate(distilled_set(), small_data(), backend="autograd", **settings)
    assert len(logits) == len(together_) == 4
    assert relative_error(together_, torch.cat(logits)) < TOLERANCE


# -- waiting for the device -----------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers read from tensors, and shapes that depend on values."""

    WAITING = ("aten._local_scalar_dense", "aten.equal", "aten.is_nonzero", "aten.nonzero", "aten.masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).rpartition(".")[0] in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", [GSAM(0.05), SGD(0.05, momentum=0.9, weight_decay=1e-3)])
@pytest.mark.parametrize("networks", [1, 3])
def test_an_epoch_reads_nothing_from_the_device(oracle, networks, optimizer):
    """Except what it draws, which is drawn on the CPU: one operation a step and network."""
    data = small_data()
    spec = NetworkSpec(MODEL, 1, 3, 8)
    trainer = Trainer([spec.build(0, k) for k in range(networks)], device=CPU, backend="oracle")
    images, labels = data.train_images, data.train_labels
    forgetting = Forgetting(labels, 1, networks=networks if trainer.stacked else None)
    for strategy, expected in (("none", 0), ("color_crop", networks * 4)):
        streams = TrainingStreams(trainer, [generator(0, k) for k in range(networks)], DSA(strategy))
        optimizer._buffer = None
        with Reads() as reads:
            batches = streams.batches(torch.arange(len(images)), 10)
            loss = trainer.epoch(images, labels, batches, optimizer, streams.augment, forgetting.observe)
            counts = forgetting.counts()
        assert reads.count == expected
        assert bool(loss.isfinite().all()) and counts.shape[-1] == len(images)
        with Reads() as reads:
            float(loss.sum())
        assert reads.count == 1


def test_an_evaluation_looks_at_its_losses_now_and_then(oracle):
    """Epochs of one step each: fifty of them are under way before the host waits."""
    spec, distilled = NetworkSpec(MODEL, 1, 3, 8), distilled_set()
    recipe = EvaluationRecipe(lr=0.05, epochs=60, batch=8, dsa="none")
    networks = [Network(spec, 0, "distilled", index) for index in range(3)]
    with Reads() as reads:
        work = train_networks(
            networks, [(distilled.images, distilled.targets)] * 3, recipe, device=CPU, backend="oracle"
        )
        seen = []
        for _ in work:
            seen.append(reads.count)
    assert len(seen) == 60 and len(oracle.steps) == 60
    assert seen == [0] * 49 + [1] * 10 + [2], seen


# -- the parts ------------------------------------------------------------------------------------------------------


def test_engines_without_a_stack_take_networks_one_after_another():
    network = NetworkSpec(MODEL, 1, 3, 8).build(0, "probe")
    for backend in ("auto", "autograd"):
        assert together(network, 16, device=CPU, backend=backend) == 1


def test_how_many_depends_on_size(kernels, monkeypatch):
    def most(model: str, resolution: int, batch: int) -> int:
        return together(NetworkSpec(model, 3, 10, resolution).build(0, "probe"), batch, device=CPU, backend="triton")

    assert most("ConvNet", 32, 10) > most("ConvNet", 32, 128) > most("ConvNet", 32, 256) > 1
    assert most("ConvNetD4", 64, 256) < most("ConvNet", 32, 256)
    assert most("ConvNetD4", 128, 1024) == 1, "never none"


def test_groups_are_of_nearly_equal_size():
    for count in range(9):
        for most in range(1, 5):
            groups = in_groups(range(count), most)
            assert [item for group in groups for item in group] == list(range(count))
            sizes = [len(group) for group in groups]
            assert len(groups) == -(-count // most) and (not sizes or max(sizes) - min(sizes) <= 1)


def test_sending_to_the_cpu_copies_nothing():
    tensor = torch.arange(3)
    assert sent(tensor, CPU) is tensor
