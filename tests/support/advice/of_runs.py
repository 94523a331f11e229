"""Runs, sweeps, evaluations and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pad_fast import DistilledDataset, distill, evaluate, load, load_dataset, resume
from pad_fast.cli.output import print_run
from pad_fast.pipeline.sweep import sweep
from pad_fast.runs.film import FILM, read_film
from pad_fast.runs.folder import read_run

from ..evaluation import SETTINGS as EVALUATION
from ..evaluation import real_images
from ..settings import SMALL
from ..small import MODEL, QUIET, small_data
from .entry import Entry, changed, command, evaluated, in_turn, pixels

DATA = small_data()
TINY = changed(
    SMALL,
    iterations=2,
    checkpoint_every=1,
    eval_networks=1,
    eval_epochs=1,
    eval_baselines=False,
    syn_steps=2,
    model=MODEL,
    progress=QUIET,
)


def run(folder: Path, *, data: Any = DATA, **changes: Any) -> DistilledDataset:
    return distill(data, out=folder / "run", **changed(TINY, **changes))


def matched(folder: Path, **changes: Any) -> DistilledDataset:
    """Distribution matching."""
    return run(folder, method="dm", threshold=None, **changes)


def hardly(folder: Path, **changes: Any) -> DistilledDataset:
    """A run that updates its images once in 60 iterations, by hardly anything."""
    still = {"iterations": 60, "lr_img": 1e-9, "lr_y": 1e-9, "lr_lr": 1e-15}
    free = run(folder / "free", threshold=None, **still)
    first, second, *_ = sorted({row["loss"] for row in free.history})
    return run(folder, **{**still, "threshold": (first + second) / 2, **changes})


def few(size: int) -> Any:
    """Data with a class of `size` images."""
    labels = torch.tensor([0] * 12 + [1] * size)
    return pixels(12 + size, 1, 8, 8), labels, pixels(4, 1, 8, 8, seed=1), torch.tensor([0, 0, 1, 1])


def swept(folder: Path, **changes: Any) -> Any:
    return sweep(
        "digits",
        out=folder / "sweep",
        **changed({key: value for key, value in TINY.items() if key != "eval_baselines"}, **changes),
    )


def quick(**changes: Any) -> Any:
    return evaluate(real_images(DATA), DATA, progress=QUIET, **{**EVALUATION, "baselines": False, **changes})


def set_of(folder: Path, **config: Any) -> None:
    real_images(load_dataset("digits"), config=config).save(folder / "set")


RUNS = (
    Entry(
        "classes smaller than ipc",
        lambda tmp: run(tmp, data=few(2), ipc=13, eval_baselines=True),
        "lower ipc or use pix_init noise",
        lambda tmp: in_turn(
            lambda: run(tmp, data=few(2), ipc=12, eval_baselines=True, eval_full_epochs=1),
            lambda: run(tmp / "noise", data=few(2), ipc=13, pix_init="noise", eval_baselines=True, eval_full_epochs=1),
        ),
    ),
    Entry(
        "a class smaller than ipc after pruning",
        lambda tmp: matched(tmp, data=few(3), ipc=3, prune="hardest:0.4"),
        "drop fewer, lower ipc or use pix_init noise",
        lambda tmp: in_turn(
            *(
                lambda number=number, how=how: matched(
                    tmp / str(number), data=few(3), **changed({"ipc": 3, "prune": "hardest:0.4"}, **how)
                )
                for number, how in enumerate(({"prune": "hardest:0.1"}, {"ipc": 1}, {"pix_init": "noise"}))
            )
        ),
    ),
    Entry(
        "experts that end too early",
        lambda tmp: run(tmp, max_start_epoch=9),
        "lower the start range or train experts longer",
        lambda tmp: in_turn(
            lambda: run(tmp / "a", max_start_epoch=2), lambda: run(tmp / "b", max_start_epoch=9, train_epochs=11)
        ),
    ),
    Entry(
        "snapshots that are reached but not kept",
        lambda tmp: run(tmp, keep="0:2"),
        "use keep plan, or all",
        lambda tmp: in_turn(lambda: run(tmp / "a", keep="plan"), lambda: run(tmp / "b", keep="all")),
    ),
    Entry(
        "a folder of another run",
        lambda tmp: (run(tmp), run(tmp, lr_img=0.5)),
        r"choose another output folder, or pass overwrite=True \(--overwrite\)",
        lambda tmp: in_turn(lambda: run(tmp / "other", lr_img=0.5), lambda: run(tmp, lr_img=0.5, overwrite=True)),
    ),
    Entry(
        "fewer iterations than there were",
        lambda tmp: (run(tmp), run(tmp, iterations=1, resume=True)),
        "raise iterations, or start afresh in another folder",
        lambda tmp: in_turn(lambda: run(tmp, iterations=3, resume=True), lambda: run(tmp / "other", iterations=1)),
    ),
    Entry(
        "a run that diverges",
        lambda tmp: run(tmp, lr_img=1e38, threshold=None, iterations=6),
        r"Lower lr_img .* begin anew with overwrite=True \(--overwrite\), .* or in another folder",
        lambda tmp: in_turn(
            lambda: run(tmp / "other", lr_img=0.1, threshold=None, iterations=6),
            lambda: run(tmp, lr_img=0.1, threshold=None, iterations=6, overwrite=True),
        ),
    ),
    Entry(
        "a run that diverges and might back off",
        lambda tmp: run(tmp, lr_img=1e38, threshold=None, iterations=6),
        r"or with back_off=True \(--back-off\), which halves steps that are too large",
        lambda tmp: in_turn(
            lambda: run(tmp, lr_img=1e38, threshold=None, iterations=6, overwrite=True, back_off=True),
            lambda: run(tmp / "other", lr_img=1e38, threshold=None, iterations=6, back_off=True),
        ),
    ),
    Entry(
        "a rate that becomes negative",
        lambda tmp: run(tmp, lr_lr=10.0, threshold=None, iterations=6),
        r"--overwrite",
        lambda tmp: run(tmp, lr_lr=1e-6, threshold=None, iterations=6, overwrite=True),
    ),
    Entry(
        "a threshold that nothing passes",
        lambda tmp: run(tmp, threshold=1e-6, iterations=60),
        "raise threshold",
        lambda tmp: run(tmp, threshold=5.0, iterations=3, overwrite=True),
    ),
    Entry(
        "a threshold that nearly nothing passes",
        lambda tmp: print_run(hardly(tmp)),
        r"raise threshold, or use back_off=True \(--back-off\)",
        lambda tmp: in_turn(
            lambda: print_run(hardly(tmp, threshold=5.0, overwrite=True)),
            lambda: print_run(hardly(tmp, back_off=True, overwrite=True)),
        ),
    ),
    Entry(
        "dm that diverges",
        lambda tmp: matched(tmp, lr_img=1e38, iterations=9),
        "Lower lr_img",
        lambda tmp: matched(tmp, lr_img=1.0, iterations=2, overwrite=True),
    ),
    Entry(
        "a checkpoint of another run",
        lambda tmp: (run(tmp), run(tmp / "b", lr_img=0.5), exchanged(tmp / "run", tmp / "b" / "run"), run(tmp)),
        r"go on with the same ones, begin anew with overwrite=True \(--overwrite\), or in another folder",
        lambda tmp: in_turn(
            lambda: run(tmp, overwrite=True),
            lambda: run(tmp / "other"),
            lambda: (exchanged(tmp / "run", tmp / "b" / "run"), run(tmp / "b", resume=True, overwrite=True)),
        ),
    ),
    Entry(
        "a log that is shorter than the checkpoint",
        lambda tmp: (run(tmp), (tmp / "run" / "metrics.jsonl").write_text(""), run(tmp, iterations=3, resume=True)),
        r"begin anew with overwrite=True \(--overwrite\)",
        lambda tmp: run(tmp, iterations=3, overwrite=True),
    ),
    Entry(
        "more iterations than there were",
        lambda tmp: (run(tmp), run(tmp, iterations=3)),
        r"go on with it for longer with resume=True \(--resume\), choose another",
        lambda tmp: in_turn(lambda: run(tmp, iterations=3, resume=True), lambda: run(tmp / "other", iterations=3)),
    ),
    Entry(
        "a folder with somebody else's files",
        lambda tmp: (others(tmp / "run"), run(tmp)),
        "choose another output folder",
        lambda tmp: run(tmp / "other"),
    ),
    Entry(
        "an empty name for the folder",
        lambda _: distill(DATA, out="", **TINY),
        "name the folder to write to",
        lambda tmp: run(tmp),
    ),
    Entry(
        "a run of tensors that goes on alone",
        lambda tmp: (run(tmp), resume(tmp / "run", progress=QUIET)),
        r"Name the data that the run began with: pad_fast.resume\('.*', dataset=...\)",
        lambda tmp: resume(tmp / "run", dataset=DATA, iterations=3, progress=QUIET),
    ),
    Entry(
        "other data for a run that goes on",
        lambda tmp: (run(tmp), resume(tmp / "run", dataset="digits", progress=QUIET)),
        "Name the data that the run began with",
        lambda tmp: resume(tmp / "run", dataset=DATA, progress=QUIET),
    ),
    Entry(
        "a sweep that is to go on as a run",
        lambda tmp: (swept(tmp), resume(tmp / "sweep", progress=QUIET)),
        "name one of them, or repeat the sweep",
        lambda tmp: in_turn(
            lambda: resume(next((tmp / "sweep" / "runs").iterdir()), progress=QUIET), lambda: swept(tmp)
        ),
    ),
    Entry(
        "a damaged result",
        lambda tmp: (run(tmp), cut(tmp / "run" / "distilled.safetensors"), load(tmp / "run")),
        "repeat the run that wrote it, or bring it back from a copy",
        lambda tmp: in_turn(lambda: (run(tmp), load(tmp / "run")), lambda: (_copied(tmp), load(tmp / "run"))),
    ),
    Entry(
        "a damaged checkpoint",
        lambda tmp: (run(tmp), cut(tmp / "run" / "checkpoint"), run(tmp, iterations=3, resume=True)),
        "",
        lambda tmp: run(tmp, iterations=3, overwrite=True),
    ),
    Entry(
        "a damaged film",
        lambda tmp: (run(tmp), cut(tmp / "run" / FILM), read_film(tmp / "run")),
        "it is only shown on the page: delete it",
        lambda tmp: ((tmp / "run" / FILM).unlink(), command("report", tmp / "run")),
    ),
    Entry(
        "a sweep's axis",
        lambda tmp: swept(tmp, prune=["hardst:0.1"]),
        r"write none, or one of hardest, easiest with ratios, such as hardest:0,0.1,0.2",
        lambda tmp: in_turn(lambda: swept(tmp, prune=["none"]), lambda: swept(tmp, prune=["hardest:0,0.1,0.2"])),
    ),
    Entry(
        "a sweep's ratios",
        lambda tmp: swept(tmp, prune=["hardest:few"]),
        "write hardest:0,0.1,0.2",
        lambda tmp: swept(tmp, prune=["hardest:0,0.1"]),
    ),
    Entry(
        "a setting twice in a sweep",
        lambda tmp: swept(tmp, prune=["hardest:0.1,0.1"]),
        "name every setting once",
        lambda tmp: swept(tmp, prune=["hardest:0.1"]),
    ),
    Entry(
        "a swept setting given beside",
        lambda tmp: swept(tmp, seeds=[0], seed=1),
        "which holds the values that the sweep takes",
        lambda tmp: swept(tmp, seeds=[0]),
    ),
    Entry(
        "a part of a sweep",
        lambda tmp: swept(tmp, part=(2, 2)),
        "counts from 0 and is below the second",
        lambda tmp: swept(tmp, part=(0, 2)),
    ),
    Entry(
        "a baseline",
        lambda _: quick(baselines=["kmean"]),
        "Did you mean 'kmeans'",
        lambda _: quick(baselines=["kmeans"]),
    ),
    Entry("no repeats", lambda _: quick(repeats=0), "at least 1", lambda _: quick(repeats=1)),
    Entry("a rate of evaluation", lambda _: quick(lr=0.0), "must be positive", lambda _: quick(lr=0.01)),
    Entry("a rate of evaluation too large", lambda _: quick(lr=1e30), "lower lr", lambda _: quick(lr=0.01)),
    Entry("a row that is not there", lambda _: quick().row("PAD"), "there are DATM", lambda _: quick().row("DATM")),
    Entry(
        "another data set",
        lambda _: evaluate(real_images(DATA), "digits", progress=QUIET, **EVALUATION),
        "but digits has",
        lambda _: quick(),
    ),
    Entry(
        "images of another size",
        lambda _: evaluate(
            real_images(DATA), (pixels(12, 1, 6, 6), torch.arange(12) % 3), progress=QUIET, **EVALUATION
        ),
        "evaluate on the data it came from",
        lambda _: quick(),
    ),
    Entry(
        "a set that does not name its data",
        lambda tmp: (set_of(tmp), evaluated(tmp / "set")),
        "name it with --dataset",
        lambda tmp: evaluated(tmp / "set", "--dataset", "digits"),
    ),
    Entry(
        "a set whose data are elsewhere",
        lambda tmp: (set_of(tmp, dataset="imagefolder:gone"), evaluated(tmp / "set")),
        "name the data as they are here with --dataset",
        lambda tmp: evaluated(tmp / "set", "--dataset", "digits"),
    ),
    Entry(
        "a set in a folder that cannot be written to",
        lambda tmp: (set_of(tmp, dataset="digits"), (tmp / "set" / "cache").touch(), evaluated(tmp / "set")),
        "name another folder with --cache-dir",
        lambda tmp: evaluated(tmp / "set", "--cache-dir", tmp / "results"),
    ),
    Entry(
        "uneven classes for DD-Ranking",
        lambda tmp: uneven(3).export(tmp, "ddranking"),
        "distil the same number for every class",
        lambda tmp: uneven(4).export(tmp, "ddranking"),
    ),
    Entry(
        "one run to compare",
        lambda tmp: (run(tmp), command("compare", tmp / "run")),
        "name two or more folders of runs",
        lambda tmp: (run(tmp / "b"), command("compare", tmp / "run", tmp / "b" / "run", "--out", tmp / "page.html")),
    ),
    Entry(
        "a folder that is no run",
        lambda tmp: read_run(tmp),
        "name the folder that `pad-fast distill` wrote",
        lambda tmp: (run(tmp), read_run(tmp / "run")),
    ),
    Entry(
        "a score file for uneven classes",
        lambda tmp: scored(tmp / "order.pt"),
        "name a .safetensors file or a folder",
        lambda tmp: in_turn(lambda: scored(tmp / "order.safetensors"), lambda: scored(tmp / "folder")),
    ),
)


def exchanged(one: Path, other: Path) -> None:
    """Give each run the other's checkpoint."""
    contents = (one / "checkpoint").read_bytes(), (other / "checkpoint").read_bytes()
    (other / "checkpoint").write_bytes(contents[0]), (one / "checkpoint").write_bytes(contents[1])


def others(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text("ipc: 1\n")


def cut(path: Path) -> None:
    path.with_suffix(".copy").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-40])


def _copied(folder: Path) -> None:
    (folder / "run" / "distilled.copy").rename(folder / "run" / "distilled.safetensors")


def uneven(count: int) -> DistilledDataset:
    labels = torch.tensor([0, 0, 1, 1])[:count]
    whole = real_images(DATA)
    return DistilledDataset(whole.images[:count], None, labels, whole.lr, whole.whitening, whole.config)


def scored(out: Path) -> None:
    command(
        "score",
        "--dataset",
        "digits",
        "--out",
        out,
        "--model",
        MODEL,
        "--score-networks",
        1,
        "--score-epochs",
        1,
        "--quiet",
    )
