"""Difficulty scores, curricula, experts and their files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_fast import Curriculum, Difficulty, ExpertStore, score, train_experts
from pad_fast.experts import convert_experts, prune
from pad_fast.experts.workers import require_processes
from pad_fast.scoring.formulas import el2n, grand
from pad_fast.scoring.native import class_order
from pad_fast.training.optimizers import make_optimizer

from ..experts import EPOCHS, P, expert, make, trained_on_a_cpu, written_buffer
from ..small import MODEL, QUIET, small_data
from .entry import Entry, changed, in_turn

DATA = small_data()
RECIPE: dict[str, Any] = {"experts": 1, "epochs": 1, "model": MODEL, "batch": 8, "progress": QUIET}


def trained(folder: Path, **changes: Any) -> ExpertStore:
    return train_experts(DATA, out=folder / "experts", **changed(RECIPE, curriculum=Curriculum.none(), **changes))


def scored(**changes: Any) -> Difficulty:
    return score(DATA, **changed({"model": MODEL, "networks": 1, "epochs": 1, "progress": QUIET}, **changes))


def table(folder: Path, rows: Any) -> Difficulty:
    torch.save(rows, folder / "order.pt")
    return Difficulty.load(folder / "order.pt")


def saved(folder: Path) -> Path:
    path = folder / "scores.safetensors"
    if not path.exists():
        scored().save(path)
    return path


def two_shapes(folder: Path) -> ExpertStore:
    written_buffer(folder, make(folder / "a", 1))
    torch.save([[[torch.zeros(3)], [torch.zeros(3)]]], folder / "replay_buffer_1.pt")
    return ExpertStore.open(folder)


def read_all(folder: Path) -> Tensor:
    return ExpertStore.open(folder).snapshot(0, 0)


def not_finite(folder: Path) -> Tensor:
    torch.save([[[torch.full((3,), torch.nan)], [torch.zeros(3)]]], folder / "replay_buffer_0.pt")
    torch.save([[[torch.ones(3)], [torch.zeros(3)]]], folder / "replay_buffer_1.pt")
    return read_all(folder)


def cut(folder: Path) -> ExpertStore:
    """A store whose second expert was cut off by a full disk."""
    trained(folder, experts=2)
    path = sorted((folder / "experts").glob("*1*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-40])
    return ExpertStore.open(folder / "experts")


def mended(folder: Path) -> ExpertStore:
    sorted((folder / "experts").glob("*1*.safetensors"))[0].unlink()
    return trained(folder, experts=2)


def networks(folder: Path, **changes: Any) -> Difficulty:
    return scored(networks_dir=folder / "networks", networks=2, **changes)


def still(folder: Path) -> ExpertStore:
    store = make(folder, 0)
    store.append(expert(0)[[0] * (EPOCHS + 1)])
    return store


def halves(folder: Path) -> ExpertStore:
    return make(folder, 1, storage="float16")


LOGITS, LABELS = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])

TRAINING = (
    Entry(
        "a rule of pruning",
        lambda _: prune([torch.arange(9)], "hard:0.2"),
        "write 'hardest:0.2', 'easiest:0.1' or 'none'",
        lambda _: in_turn(
            *(lambda rule=rule: prune([torch.arange(10)], rule) for rule in ("hardest:0.2", "easiest:0.1", "none"))
        ),
    ),
    Entry(
        "epochs out of order",
        lambda _: Curriculum(0.75, 5, 3, 8, 0.1, 0.2),
        "must be >= 0 and in this order",
        lambda _: Curriculum(0.75, 3, 5, 8, 0.1, 0.2),
    ),
    Entry(
        "more than a class",
        lambda _: Curriculum(1.5, 3, 5, 8, 0.1, 0.2),
        "from 0 to 1",
        lambda _: Curriculum(0.5, 3, 5, 8, 0.1, 0.2),
    ),
    Entry(
        "an epoch without images",
        lambda _: Curriculum(0.01, 3, 5, 8, 0.1, 0.2).require_images(9, [9]),
        "raise initial_ratio, lower the removal ratios, or add images",
        lambda _: in_turn(
            lambda: Curriculum(0.5, 3, 5, 8, 0.1, 0.2).require_images(9, [9]),
            lambda: Curriculum(0.01, 3, 5, 8, 0.1, 0.2).require_images(9, [100]),
        ),
    ),
    Entry(
        "removing all",
        lambda _: Curriculum(0.5, 3, 5, 8, 1.0, 1.0).require_images(9, [9]),
        "lower the removal ratios",
        lambda _: Curriculum(0.5, 3, 5, 8, 0.5, 0.5).require_images(9, [9]),
    ),
    Entry(
        "an order that nobody gave",
        lambda tmp: trained(tmp, prune_rule="hardest:0.1"),
        r"pass difficulty=pad_fast.score\(...\), or the path of an order table",
        lambda tmp: in_turn(
            lambda: trained(tmp / "a", prune_rule="hardest:0.1", difficulty=scored()),
            lambda: trained(tmp / "b", prune_rule="hardest:0.1", difficulty=saved(tmp)),
        ),
    ),
    Entry("no epochs", lambda tmp: trained(tmp, epochs=0), "at least 1", lambda tmp: trained(tmp, epochs=1)),
    Entry("a rate of zero", lambda tmp: trained(tmp, lr=0.0), "must be positive", lambda tmp: trained(tmp, lr=0.01)),
    Entry(
        "an optimiser",
        lambda _: make_optimizer("adam", 0.1, rho=0.1, alpha=0.1),
        "use one of gsam, sgd",
        lambda _: in_turn(
            *(lambda name=name: make_optimizer(name, 0.1, rho=0.1, alpha=0.1) for name in ("gsam", "sgd"))
        ),
    ),
    Entry(
        "experts of another recipe",
        lambda tmp: (trained(tmp), trained(tmp, lr=0.02)),
        "use another folder, or delete this one",
        lambda tmp: in_turn(
            lambda: trained(tmp / "other", lr=0.02), lambda: (_remove(tmp / "experts"), trained(tmp, lr=0.02))
        ),
    ),
    Entry(
        "experts that are not there",
        lambda tmp: ExpertStore.open(tmp),
        r"neither .* nor replay_buffer_\*.pt is there",
        lambda tmp: (make(tmp, 1), ExpertStore.open(tmp)),
    ),
    Entry("a damaged expert", cut, "delete it to train this expert again, the others stay usable", mended),
    Entry(
        "a kind of storage",
        lambda tmp: make(tmp, 1, storage="float8"),
        "use one of float32",
        lambda tmp: make(tmp, 1, storage="float16"),
    ),
    Entry(
        "weights beyond float16",
        lambda tmp: make(tmp, 0, storage="float16").append(expert(0) * 1e6, {"loss": 0.0}),
        "use storage float32 or bfloat16-delta",
        lambda tmp: in_turn(
            lambda: make(tmp / "a", 0).append(expert(0) * 1e6, {"loss": 0.0}),
            lambda: make(tmp / "b", 0, storage="bfloat16-delta").append(expert(0) * 1e6, {"loss": 0.0}),
        ),
    ),
    Entry(
        "an expert that diverged",
        lambda tmp: make(tmp, 0).append(expert(0) * torch.nan, {"loss": 0.0}),
        "lower the expert learning rate",
        lambda tmp: trained(tmp, lr=1e-3),
    ),
    Entry(
        "snapshots that were not kept",
        lambda tmp: make(tmp, 1, kept=[0, 3]).snapshot(0, 1),
        r"train experts that keep it \(--keep\), in another folder",
        lambda tmp: make(tmp / "other", 1, kept=[0, 1, 3]).snapshot(0, 1),
    ),
    Entry(
        "adding to a part",
        lambda tmp: make(tmp, 2).first(1).append(expert(2), {"loss": 0.0}),
        "open the folder to add any",
        lambda tmp: ExpertStore.open(tmp).append(expert(2), {"loss": 0.0}),
    ),
    Entry(
        "adding to replay buffers",
        lambda tmp: (
            written_buffer(tmp / "b", make(tmp / "a", 1)),
            ExpertStore.open(tmp / "b").append(expert(1), {"loss": 0.0}),
        ),
        "create a store elsewhere",
        lambda tmp: (
            convert_experts(tmp / "b", tmp / "c", progress=QUIET),
            ExpertStore.open(tmp / "c").append(expert(1), {"loss": 0.0}),
        ),
    ),
    Entry(
        "replay buffers of two networks",
        two_shapes,
        "keep one kind per folder",
        lambda tmp: ((tmp / "replay_buffer_1.pt").unlink(), ExpertStore.open(tmp)),
    ),
    Entry(
        "replay buffers of something else",
        lambda tmp: (torch.save({"a": 1}, tmp / "replay_buffer_0.pt"), ExpertStore.open(tmp)),
        "each a list of parameter tensors",
        lambda tmp: (written_buffer(tmp, make(tmp / "a", 1)), ExpertStore.open(tmp)),
    ),
    Entry(
        "replay buffers that are not finite",
        not_finite,
        "leave that file out",
        lambda tmp: ((tmp / "replay_buffer_0.pt").unlink(), read_all(tmp)),
    ),
    Entry(
        "replay buffers without a copy",
        lambda tmp: (trained_on_a_cpu(tmp / "replay_buffer_0.pt", copied=False), ExpertStore.open(tmp)),
        r"write the file again with `.clone\(\)` behind it",
        lambda tmp: (trained_on_a_cpu(tmp / "replay_buffer_0.pt", copied=True), ExpertStore.open(tmp)),
    ),
    Entry(
        "an expert that stands still",
        lambda tmp: still(tmp).require_moved(0, 0, 1),
        "train the experts again",
        lambda tmp: trained(tmp / "again").require_moved(0, 0, 1),
    ),
    Entry(
        "rounding twice",
        lambda tmp: (halves(tmp / "a"), convert_experts(tmp / "a", tmp / "b", progress=QUIET)),
        "convert the float32 experts it was made from, or write replay buffers",
        lambda tmp: in_turn(
            lambda: (make(tmp / "c", 1), convert_experts(tmp / "c", tmp / "d", storage="float16", progress=QUIET)),
            lambda: convert_experts(_with_shapes(tmp / "e"), tmp / "f", replay=True, progress=QUIET),
        ),
    ),
    Entry(
        "an order of another set",
        lambda tmp: table(tmp, torch.arange(6).view(3, 2)).require(DATA),
        "but .* has 38 in 3",
        lambda _: scored().require(DATA),
    ),
    Entry(
        "an order that repeats",
        lambda tmp: table(tmp, torch.zeros(3, 2).long()),
        "each image must occur once",
        lambda tmp: table(tmp, torch.arange(6).view(3, 2)),
    ),
    Entry(
        "one order of all images",
        lambda tmp: table(tmp, torch.arange(38)),
        r"only the data say their classes; pass them with it: Difficulty.load\(path, data\)",
        lambda tmp: Difficulty.load(tmp / "order.pt", DATA),
    ),
    Entry(
        "a table of classes that differ in size",
        lambda tmp: scored().save(tmp / "order.pt"),
        "save as .safetensors",
        lambda tmp: scored().save(tmp / "order.safetensors"),
    ),
    Entry(
        "a method of scoring", lambda _: scored(method="eln2"), "Did you mean 'el2n'", lambda _: scored(method="el2n")
    ),
    Entry("no networks", lambda _: scored(networks=0), "at least 1", lambda _: scored(networks=1)),
    Entry("a scoring rate", lambda _: scored(lr=0.0), "must be positive", lambda _: scored(lr=0.01)),
    Entry(
        "a scoring rate too large", lambda _: scored(lr=1e30, epochs=3), "lower it", lambda _: scored(lr=0.01, epochs=3)
    ),
    Entry(
        "score networks of another recipe",
        lambda tmp: (networks(tmp), networks(tmp, lr=0.02)),
        "choose another folder, or delete this one",
        lambda tmp: in_turn(
            lambda: networks(tmp / "other", lr=0.02), lambda: (_remove(tmp / "networks"), networks(tmp, lr=0.02))
        ),
    ),
    Entry(
        "features of other images",
        lambda _: grand(LOGITS, torch.rand(3, 5), LABELS),
        "one row per image",
        lambda _: grand(LOGITS, torch.rand(4, 5), LABELS),
    ),
    Entry(
        "logits of one axis in a formula",
        lambda _: el2n(torch.rand(4), LABELS),
        r"floating point \[N, classes\]",
        lambda _: el2n(LOGITS, LABELS),
    ),
    Entry(
        "labels of another type in a formula",
        lambda _: el2n(LOGITS, LABELS.float()),
        r"int32 or int64 \[4\]",
        lambda _: el2n(LOGITS, LABELS.int()),
    ),
    Entry(
        "labels beyond the classes in a formula",
        lambda _: el2n(LOGITS, LABELS + 1),
        r"they lie in \[0, 3\)",
        lambda _: el2n(LOGITS, LABELS),
    ),
    Entry(
        "a score that is no number",
        lambda _: class_order(torch.tensor([0.1, torch.nan]), torch.tensor([0, 0]), 1),
        "drop or recompute it",
        lambda _: class_order(torch.tensor([0.1]), torch.tensor([0]), 1),
    ),
    Entry(
        "an order of no classes",
        lambda _: class_order(torch.tensor([0.1]), torch.tensor([0]), 0),
        "at least one",
        lambda _: class_order(torch.tensor([0.1]), torch.tensor([0]), 1),
    ),
    Entry(
        "snapshots of too few epochs",
        lambda tmp: ExpertStore.create(tmp, parameter_count=P, epochs=EPOCHS, kept=[9], metadata={}),
        "have 0..3",
        lambda tmp: make(tmp, 1, kept=[3]),
    ),
    Entry(
        "workers on a GPU",
        lambda tmp: _workers("cuda"),
        "leave workers at 0 there",
        lambda tmp: trained(tmp, workers=0),
    ),
)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _workers(device: str) -> None:
    require_processes(torch.device(device))


def _with_shapes(folder: Path) -> Path:
    store = make(folder, 0, storage="float16", shapes="2x5 1")
    store.append(expert(0), {"loss": 0.0})
    return folder
