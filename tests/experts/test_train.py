"""Training experts: what they see, that runs can be interrupted, and that snapshots are snapshots."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pad_fast import Curriculum, Difficulty, ExpertStore, train_experts
from pad_fast.errors import ConfigError, PadFastError, StoreError
from pad_fast.experts import examine, recipe
from pad_fast.experts import train as train_module
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime import files
from pad_fast.scoring.formulas import class_order
from pad_fast.training.trainer import Trainer

from ..support.small import MODEL, QUIET, SIZES, small_data

SETTINGS = {"model": MODEL, "epochs": 2, "batch": 16, "lr": 0.05, "progress": QUIET, "dsa": "color_crop"}
CURRICULUM = Curriculum(0.5, 1, 2, 3, 0.2, 0.4)


def difficulty_of(data) -> Difficulty:
    scores = torch.rand(len(data.train_labels), generator=torch.Generator().manual_seed(2))
    return Difficulty(scores, class_order(scores, data.train_labels, data.classes), "el2n", data.fingerprint)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_store_holds_what_was_asked_for(tmp_path):
    data = small_data()
    store = train_experts(data, out=tmp_path, experts=2, **SETTINGS)
    network = NetworkSpec(MODEL, 1, 3, 8)
    assert (len(store), store.epochs) == (2, 2)
    for index in range(2):
        assert torch.equal(store.snapshot(index, 0), network.build(0, "expert", index).initial())
    assert store.metadata["fingerprint"] == data.fingerprint
    assert store.metadata["optimizer"] == {"name": "gsam", "lr": 0.05, "batch": 16, "rho": 0.01, "alpha": 0.3}
    moved = [float((store.snapshot(0, k + 1) - store.snapshot(0, k)).norm()) for k in range(2)]
    assert min(moved) > 1e-3, "an epoch changed nothing"


def test_snapshots_do_not_alias_live_weights(tmp_path, monkeypatch):
    """On a CPU `.cpu()` is the tensor itself; an optimiser that works in place must not rewrite the past."""

    class InPlace:
        def step(self, theta, loss_and_grad, by):
            loss, gradient = loss_and_grad(theta)
            return theta.sub_(0.05 * gradient), loss

    monkeypatch.setattr(recipe, "make_optimizer", lambda *_, **__: InPlace())
    in_place = train_experts(small_data(), out=tmp_path / "a", experts=1, **SETTINGS)
    monkeypatch.undo()
    fresh = train_experts(small_data(), out=tmp_path / "b", experts=1, optimizer="sgd", **SETTINGS)
    for epoch in range(3):
        assert torch.allclose(in_place.snapshot(0, epoch), fresh.snapshot(0, epoch), rtol=1e-4, atol=1e-6)
    assert not torch.equal(in_place.snapshot(0, 0), in_place.snapshot(0, 2))


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, monkeypatch):
    data, order = small_data(), difficulty_of(small_data())
    settings = {**SETTINGS, "experts": 3, "curriculum": CURRICULUM, "difficulty": order}
    train_experts(data, out=tmp_path / "whole", **settings)

    epochs = 0
    original = Trainer.epoch

    def interrupted(self, *arguments):
        nonlocal epochs
        epochs += 1
        if epochs == 4:  # in the middle of the second expert
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_experts(data, out=tmp_path / "parts", **settings)
    monkeypatch.undo()
    assert len(ExpertStore.open(tmp_path / "parts")) == 1
    train_experts(data, out=tmp_path / "parts", **settings)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_an_expert_does_not_depend_on_how_many_there_are(tmp_path):
    data = small_data()
    train_experts(data, out=tmp_path / "two", experts=2, **SETTINGS)
    train_experts(data, out=tmp_path / "one", experts=1, **SETTINGS)
    two = contents(tmp_path / "two")
    assert contents(tmp_path / "one")["expert_00000.safetensors"] == two["expert_00000.safetensors"]
    assert two["expert_00000.safetensors"] != two["expert_00001.safetensors"]
    train_experts(data, out=tmp_path / "one", experts=2, **SETTINGS)
    assert contents(tmp_path / "one") == two
    before = two["store.json"]
    assert len(train_experts(data, out=tmp_path / "two", experts=1, **SETTINGS)) == 2
    assert contents(tmp_path / "two")["store.json"] == before


def test_global_generators_have_no_part_in_it(tmp_path, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        train_experts(small_data(), out=tmp_path / name, experts=1, **SETTINGS)
        assert torch.equal(torch.get_rng_state(), state)
    assert seeded == [1, 2], "the GPUs' generators were seeded by something else than this test"
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.fixture
def shown(monkeypatch):
    """Dataset indices of every epoch that is trained."""
    epochs = []
    original = Trainer.epoch

    def record(self, images, labels, batches, *rest):
        epochs.append([batch.tolist() for batch in batches])
        return original(self, images, labels, batches, *rest)

    monkeypatch.setattr(Trainer, "epoch", record)
    return epochs


def test_curriculum_stages_are_what_the_experts_see(tmp_path, shown):
    data = small_data()
    order = difficulty_of(data)
    train_experts(
        data,
        out=tmp_path,
        experts=1,
        curriculum=CURRICULUM,
        difficulty=order,
        **{**SETTINGS, "epochs": 5},
    )
    assert len(shown) == 5
    for epoch, batches in enumerate(shown):
        expected = []
        for label, size in enumerate(SIZES):
            start, stop = [(0, size // 2), (0, size), (0, size), (int(0.2 * size), size), (int(0.4 * size), size)][
                epoch
            ]
            expected += order.order[label][start:stop].tolist()
        flat = sum(batches, [])
        assert sorted(flat) == sorted(expected), f"epoch {epoch}"
        assert flat != expected, "the order of difficulty leaks into the batches"
        assert all(len(batch) == 16 for batch in batches[:-1]) and 1 <= len(batches[-1]) <= 16
    assert len({len(sum(batches, [])) for batches in shown}) == 4


def test_experts_see_their_images_in_different_orders(tmp_path, shown):
    train_experts(small_data(), out=tmp_path, experts=2, **SETTINGS)
    assert len(shown) == 4
    assert len({str(batches) for batches in shown}) == 4


def test_pruned_images_are_never_seen(tmp_path, shown):
    data = small_data()
    order = difficulty_of(data)
    train_experts(data, out=tmp_path, experts=1, prune_rule="hardest:0.25", difficulty=order, **SETTINGS)
    kept = sorted(sum((rows[: len(rows) - int(0.25 * len(rows))].tolist() for rows in order.order), []))
    assert len(kept) < len(data.train_labels)
    assert [sorted(sum(batches, [])) for batches in shown] == [kept] * 2


def test_an_order_nobody_needs_changes_nothing(tmp_path):
    data = small_data()
    train_experts(data, out=tmp_path / "a", experts=1, **SETTINGS)
    train_experts(data, out=tmp_path / "b", experts=1, difficulty=difficulty_of(data), **SETTINGS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_order_tables_from_files(tmp_path):
    data = small_data()
    order = difficulty_of(data)
    path = order.save(tmp_path / "order.safetensors")
    table = files.write_torch(tmp_path / "order.pt", [rows.tolist() for rows in order.order])
    settings = {**SETTINGS, "experts": 1, "curriculum": CURRICULUM}
    for name, given in (("object", order), ("ours", path), ("table", str(table))):
        train_experts(data, out=tmp_path / name, difficulty=given, **settings)
    assert contents(tmp_path / "object") == contents(tmp_path / "ours") == contents(tmp_path / "table")


def test_optimizers_differ(tmp_path):
    ends = {}
    for name, options in (
        ("gsam", {}),
        ("rho", {"rho": 0.2}),
        ("alpha", {"alpha": 0.9, "rho": 0.2}),
        ("sgd", {"optimizer": "sgd"}),
    ):
        ends[name] = train_experts(small_data(), out=tmp_path / name, experts=1, **options, **SETTINGS).snapshot(0, -1)
    start = NetworkSpec(MODEL, 1, 3, 8).build(0, "expert", 0).initial()
    for one, other in (("gsam", "sgd"), ("gsam", "rho"), ("rho", "alpha")):
        assert float((ends[one] - ends[other]).norm() / (ends["sgd"] - start).norm()) > 1e-3, (one, other)


def test_experts_learn(tmp_path):
    data = small_data()
    store = train_experts(data, out=tmp_path, experts=1, **{**SETTINGS, "epochs": 8, "batch": 8})
    from pad_fast.data import fit_normalization

    images = fit_normalization(data, "mean-std").apply(data.test_images)
    trainer = Trainer(NetworkSpec(MODEL, 1, 3, 8).build(0, "x"), device=torch.device("cpu"), backend="auto")
    trainer.theta = store.snapshot(0, 0)
    before = trainer.accuracy(images, data.test_labels)
    trainer.theta = store.snapshot(0, -1)
    assert trainer.accuracy(images, data.test_labels) > max(before, 80)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store of one expert trained with SETTINGS; copy it before use."""
    folder = tmp_path_factory.mktemp("trained")
    train_experts(small_data(), out=folder, experts=1, **SETTINGS)
    return folder


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 0.1}, "optimizer = "),
        ({"model": "ConvNetD1W16"}, "parameter_count = |model = "),
        ({"epochs": 4}, "epochs = 2, but 4"),
        ({"seed": 1}, "seed = 0, but 1"),
        ({"dsa": "none"}, "augmentation = "),
        ({"zca": True}, "normalization = 'mean-std', but 'zca'"),
        ({"curriculum": Curriculum(0.5, 1, 2, 2)}, "curriculum = "),
        ({"prune_rule": "hardest:0.1"}, "prune = "),
        ({"keep": "0,-1"}, "kept = '0:3', but '0,2'"),
        ({"storage": "float16"}, "storage = 'float32', but 'float16'"),
        ({"workers": 2}, "threads = 'all', but 'one'"),
    ],
)
def test_experts_of_other_settings_are_not_mixed(tmp_path, trained, changed, named):
    data = small_data()
    settings = {**SETTINGS, "experts": 1, "difficulty": difficulty_of(data)}
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=named):
        train_experts(data, out=tmp_path, **{**settings, "experts": 2, **changed})
    assert contents(tmp_path) == before


def test_experts_of_other_data_or_order_are_not_mixed(tmp_path):
    data = small_data()
    settings = {**SETTINGS, "experts": 1, "curriculum": CURRICULUM}
    order = difficulty_of(data)
    train_experts(data, out=tmp_path, difficulty=order, **settings)
    reversed_order = Difficulty(-order.scores, [rows.flip(0) for rows in order.order], "el2n", data.fingerprint)
    with pytest.raises(StoreError, match="order = "):
        train_experts(data, out=tmp_path, difficulty=reversed_order, **settings)
    other = small_data(seed=4)
    with pytest.raises(StoreError, match="another data set"):
        train_experts(other, out=tmp_path, difficulty=order, **settings)
    with pytest.raises(StoreError, match="fingerprint = "):
        train_experts(other, out=tmp_path, difficulty=difficulty_of(other), **settings)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"experts": 0}, "experts is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": -0.1}, "learning rate is -0.1"),
        ({"lr": float("nan")}, "learning rate is nan"),
        ({"optimizer": "adam"}, "unknown expert optimizer 'adam'"),
        ({"dsa": "colour"}, "colour"),
        ({"dsa_mode": "quick"}, "quick"),
        ({"keep": "0:9"}, "keep is '0:9'"),
        ({"storage": "float8"}, "storage is 'float8'"),
        ({"workers": -1}, "workers is -1"),
        ({"test_every": -1}, "test_every is -1"),
        ({"curriculum": CURRICULUM}, "needs to know which images are hard"),
        ({"prune_rule": "hardest:0.2"}, "needs to know which images are hard"),
    ],
)
def test_bad_settings_are_errors_before_a_store_exists(tmp_path, changed, named):
    with pytest.raises(ConfigError, match=named):
        train_experts(small_data(), out=tmp_path / "out", **{**SETTINGS, "experts": 1, **changed})
    assert not (tmp_path / "out").exists(), "a store that describes itself wrongly blocks the corrected call"


def test_empty_stages_are_errors_before_a_store_exists(tmp_path):
    data = small_data()
    with pytest.raises(ConfigError, match=r"class 1 \(9 images\) in epoch 0"):
        train_experts(
            data,
            out=tmp_path / "out",
            experts=1,
            curriculum=Curriculum(0.1, 1, 2, 3),
            difficulty=difficulty_of(data),
            **SETTINGS,
        )
    assert not (tmp_path / "out").exists()


def test_a_diverging_expert_is_refused(tmp_path):
    with pytest.raises(StoreError, match="lower the expert learning rate"):
        train_experts(small_data(), out=tmp_path, experts=1, **{**SETTINGS, "lr": 1e25})
    assert len(ExpertStore.open(tmp_path)) == 0


def test_backend_is_the_one_asked_for(tmp_path):
    from pad_fast.engines import record_backends
    from pad_fast.errors import BackendError

    with record_backends() as used:
        train_experts(small_data(), out=tmp_path / "a", experts=2, backend="autograd", **SETTINGS)
    assert set(used) == {"autograd"}
    with pytest.raises(BackendError, match="unknown backend 'autogard'.*Did you mean 'autograd'"):
        train_experts(small_data(), out=tmp_path / "b", experts=1, backend="autogard", **SETTINGS)


# -- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16-delta"])
def test_kept_snapshots_are_those_of_a_full_store(tmp_path, storage):
    settings = {**SETTINGS, "experts": 2, "epochs": 4}
    full = train_experts(small_data(), out=tmp_path / "full", **settings)
    less = train_experts(small_data(), out=tmp_path / "less", keep="1:3,-1", storage=storage, **settings)
    assert less.kept == (1, 2, 4) and less.epochs == 4
    for epoch in less.kept:
        error = float((less.snapshot(1, epoch) - full.snapshot(1, epoch)).norm() / full.snapshot(1, epoch).norm())
        assert error == 0 if storage == "float32" or epoch == 1 != (storage == "float16") else 0 < error < 1e-3
    with pytest.raises(StoreError, match="keeps 1:3,4 of 0..4"):
        less.snapshot(0, 3)


def test_accuracy_is_remembered_and_changes_nothing(tmp_path):
    settings = {**SETTINGS, "experts": 2, "epochs": 5, "batch": 8}
    plain = train_experts(small_data(), out=tmp_path / "plain", **settings)
    tested = train_experts(small_data(), out=tmp_path / "tested", test_every=2, **settings)
    assert set(plain.facts(0)) == {"loss"} and plain.facts(0)["loss"] > 0
    facts = tested.facts(1)
    assert list(facts["accuracy"]) == ["2", "4", "5"] and facts["loss"] == plain.facts(1)["loss"]
    from pad_fast.data import fit_normalization

    data = small_data()
    trainer = Trainer(NetworkSpec(MODEL, 1, 3, 8).build(0, "x"), device=torch.device("cpu"), backend="auto")
    for epoch, accuracy in facts["accuracy"].items():
        assert torch.equal(tested.snapshot(1, int(epoch)), plain.snapshot(1, int(epoch)))
        trainer.theta = tested.snapshot(1, int(epoch))
        images = fit_normalization(data, "mean-std").apply(data.test_images)
        assert accuracy == pytest.approx(float(trainer.accuracy(images, data.test_labels)), abs=1e-3)


# -- several at once, and killed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A store of eight experts that nobody disturbed, each trained on one thread."""
    folder = tmp_path_factory.mktemp("eight")
    train_experts(small_data(), out=folder, experts=8, workers=1, **SETTINGS)
    return contents(folder)


def logged(log: Path, monkeypatch) -> None:
    """Write down who trains which expert; forked processes write it down as well."""
    original = train_module.ExpertTraining.train

    def train(self, numbers):
        with log.open("a") as file:
            file.writelines(f"{os.getpid()} {number}\n" for number in numbers)
        return original(self, numbers)

    monkeypatch.setattr(train_module.ExpertTraining, "train", train)


def trained_by(log: Path) -> list[tuple[int, int]]:
    return [(int(pid), int(index)) for pid, index in (line.split() for line in log.read_text().splitlines())]


@pytest.mark.parametrize("workers", [1, 3])
def test_experts_do_not_depend_on_how_many_are_trained_at_once(tmp_path, eight, monkeypatch, workers):
    logged(tmp_path / "log", monkeypatch)
    store = train_experts(small_data(), out=tmp_path / "out", experts=8, workers=workers, **SETTINGS)
    assert len(store) == 8 and contents(tmp_path / "out") == eight
    who = trained_by(tmp_path / "log")
    assert sorted(index for _, index in who) == list(range(8)), "each expert once"
    assert os.getpid() not in {pid for pid, _ in who} and len({pid for pid, _ in who}) <= workers


def test_experts_go_to_every_worker(tmp_path, monkeypatch):
    """Each worker waits in its first expert until all of them have one."""
    barrier = multiprocessing.get_context("fork").Barrier(3)
    original = train_module.ExpertTraining.train
    met = []

    def train(self, numbers):
        if not met:
            met.append(barrier.wait(20))
        return original(self, numbers)

    monkeypatch.setattr(train_module.ExpertTraining, "train", train)
    assert len(train_experts(small_data(), out=tmp_path, experts=5, workers=3, **SETTINGS)) == 5


def test_a_killed_worker_is_replaced_by_the_others(tmp_path, eight, monkeypatch):
    original = train_module.ExpertTraining.train

    def train(self, numbers):
        if numbers == [2] and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, numbers)

    monkeypatch.setattr(train_module.ExpertTraining, "train", train)
    train_experts(small_data(), out=tmp_path / "out", experts=8, workers=2, **SETTINGS)
    assert (tmp_path / "killed").exists() and contents(tmp_path / "out") == eight


def test_when_all_workers_are_killed_it_is_an_error(tmp_path, monkeypatch):
    original = train_module.ExpertTraining.train

    def train(self, numbers):
        if numbers[0] >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, numbers)

    monkeypatch.setattr(train_module.ExpertTraining, "train", train)
    with pytest.raises(PadFastError, match=r"all workers ended early \(exit codes -9, -9.*repeat the command"):
        train_experts(small_data(), out=tmp_path, experts=8, workers=2, **SETTINGS)
    assert len(ExpertStore.open(tmp_path)) == 2


def test_what_a_worker_raises_is_raised(tmp_path):
    with pytest.raises(StoreError, match="lower the expert learning rate"):
        train_experts(small_data(), out=tmp_path, experts=3, workers=2, **{**SETTINGS, "lr": 1e25})
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_workers_are_processes_of_the_cpu():
    from pad_fast.experts.workers import require_processes

    with pytest.raises(ConfigError, match="the device is cuda"):
        require_processes(torch.device("cuda"))


def start(folder: Path, **changes):
    """The same call in a process of its own."""
    settings = {**SETTINGS, "experts": 8, "workers": 0, **changes}
    process = multiprocessing.get_context("fork").Process(
        target=train_experts, args=(small_data(),), kwargs={"out": folder, **settings}
    )
    process.start()
    return process


def test_gaps_that_killed_workers_leave(tmp_path, eight):
    train_experts(small_data(), out=tmp_path, experts=8, workers=1, **SETTINGS)
    for number in (1, 5):
        (tmp_path / f"expert_0000{number}.safetensors").unlink()
    # Enough for a smaller call, which leaves the rest to whoever wants it.
    assert len(train_experts(small_data(), out=tmp_path, experts=3, workers=1, **SETTINGS)) == 5
    assert not (tmp_path / "expert_00005.safetensors").exists()
    assert len(train_experts(small_data(), out=tmp_path, experts=7, workers=2, **SETTINGS)) == 8
    assert contents(tmp_path) == eight


def test_two_calls_share_one_store(tmp_path, monkeypatch):
    train_experts(small_data(), out=tmp_path / "alone", experts=8, **SETTINGS)
    logged(tmp_path / "log", monkeypatch)
    processes = [start(tmp_path / "out") for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert sorted(index for _, index in trained_by(tmp_path / "log")) == list(range(8)), "each expert once"


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(tmp_path, workers):
    """SIGKILL, again and again: at most the expert in flight is lost, and the end is that of an undisturbed run."""
    settings = {**SETTINGS, "experts": 60, "epochs": 3}
    train_experts(small_data(), out=tmp_path / "whole", workers=workers, **settings)
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"
    moments, have = random.Random(workers), {}
    kills = 0
    for _ in range(10):
        process = start(out, workers=workers, epochs=3, experts=60)
        time.sleep(moments.uniform(0.01, 0.06))
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        names = [path.name for path in out.iterdir()] if out.exists() else []
        now = {name: (out / name).read_bytes() for name in names if name.startswith("expert_")}
        assert have.items() <= now.items(), "a finished expert was lost or changed"
        assert all(whole[name] == content for name, content in now.items())
        if "store.json" in names:
            problems = [finding.problem for finding in examine(out) if finding.problem]
            assert all("is missing" in problem for problem in problems), problems
        # Of workers that outlive their parent for a moment, each may still finish one.
        have = now
    assert kills >= 3, "the runs ended before they could be killed"
    time.sleep(1.0 if workers else 0)
    out.mkdir(exist_ok=True)  # on a busy machine every run may have been killed before it made the folder
    (out / ".expert_00000.safetensors.part").touch()  # as a kill between two system calls leaves it
    train_experts(small_data(), out=out, workers=workers, **settings)
    left = {name: value for name, value in contents(out).items() if not name.startswith(".store.json.")}
    assert left == whole, "the same files, and nothing of an expert left behind"
