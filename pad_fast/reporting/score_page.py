"""Files of `pad-fast score`: scores, order table, a line for every image, metadata, a contact sheet, and a page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import ImageDataset
from ..errors import StoreError
from ..runs.preview import SHOWN, ends, small
from ..runtime import files
from ..runtime.environment import environment
from ..scoring.difficulty import Difficulty
from .contact_sheet import image_grid, png_bytes, single_png
from .html.charts import histogram
from .html.gallery import Picture, PictureRow, gallery
from .html.page import details, hint, page, section
from .html.render import part

_CLASSES = 100  # at most these get a histogram of their own


@dataclass(frozen=True)
class ScoreFiles:
    """The files of one scored data set, all named after one stem.

    Attributes:
        scores: scores, variance, forgetting and order, safetensors; :meth:`pad_fast.Difficulty.load` reads it.
        table: the order as the reference's index table `[classes, n_c]`; None where classes differ in size.
        rows: a line for every training image, easy to hard within its class, CSV.
        metadata: settings, versions and a summary of every class, JSON.
        picture: the easiest and the hardest images of each class.
        page: all of it to look at.
        networks: folder of the trained networks; with it, repeating the command trains nothing.
        main: the file that was asked for.
    """

    scores: Path
    table: Path | None
    rows: Path
    metadata: Path
    picture: Path
    page: Path
    networks: Path
    main: Path

    @classmethod
    def at(cls, out: str | os.PathLike[str], data: ImageDataset) -> ScoreFiles:
        """Names under a folder, or beside a file.

        Raises:
            StoreError: the folder cannot be written to, or a .pt table was asked for and classes differ in size.
        """
        path = Path(out)
        named = path.suffix in (".safetensors", ".pt")
        stem = path.with_suffix("") if named else path / "difficulty"
        sizes = sorted(set(torch.bincount(data.train_labels).tolist()))
        table = stem.with_name(stem.name + ".pt") if len(sizes) == 1 else None
        if path.suffix == ".pt" and table is None:
            raise StoreError(
                f"the reference's .pt table is rectangular, but class sizes of {data.name} are {sizes}; "
                "name a .safetensors file or a folder"
            )
        files.require_writable(stem.parent)
        scores, rows, metadata, picture, shown, networks = (
            stem.with_name(stem.name + suffix)
            for suffix in (".safetensors", ".csv", ".json", ".png", ".html", ".networks")
        )
        return cls(scores, table, rows, metadata, picture, shown, networks, path if named else scores)

    def write(self, difficulty: Difficulty, data: ImageDataset, *, called: str | None = None) -> None:
        """Write everything but the networks; equal scores give equal bytes. `called` is in the title of its page."""
        difficulty.save(self.scores)
        if self.table is not None:
            difficulty.save(self.table)
        described = metadata(difficulty, data)
        files.write_json(self.metadata, described)
        files.write_text(self.rows, as_csv(difficulty, data))
        files.write_bytes(self.picture, contact_sheet(difficulty, data))
        files.write_text(self.page, render(difficulty, data, described, called or data.name))


def metadata(difficulty: Difficulty, data: ImageDataset) -> dict[str, Any]:
    """Settings, versions, and what each class looks like, ready for JSON."""
    versions = {k: str(v) for k, v in environment().items() if k in ("pad_fast", "python", "torch", "numpy")}
    classes = []
    for name, indices in zip(data.class_names, difficulty.order, strict=True):
        scores = difficulty.scores[indices].double()
        summary: dict[str, Any] = {"name": name, "images": len(indices), "mean": float(scores.mean())}
        summary["quartiles"] = [float(q) for q in scores.quantile(torch.tensor([0.25, 0.5, 0.75]).double())]
        if difficulty.forgetting is not None:
            summary["mean_forgetting"] = float(difficulty.forgetting[indices].mean())
        summary["easiest"] = indices[:SHOWN].tolist()
        summary["hardest"] = indices[-SHOWN:].flip(0).tolist()
        classes.append(summary)
    described: dict[str, Any] = {"method": difficulty.method, "fingerprint": difficulty.fingerprint}
    described |= {"settings": difficulty.settings, "versions": versions, "images": len(difficulty.scores)}
    if difficulty.variance is not None:
        described["std_over_networks"] = float(difficulty.variance.double().mean().sqrt())
    return {**described, "classes": classes}


def as_csv(difficulty: Difficulty, data: ImageDataset) -> str:
    """A line for every training image, class after class, easy to hard: what a table program reads (RFC 4180).

    The columns: index in the training set, file (empty where the data are none), label and name of the class, rank in
    it from 1, score; and where they are known, the standard deviation over networks and the forgetting events.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    variance, forgetting = difficulty.variance, difficulty.forgetting
    known = [("std_over_networks", None if variance is None else variance.double().sqrt()), ("forgetting", forgetting)]
    extra = [(name, values) for name, values in known if values is not None]
    header = ["index", "file", "label", "class", "rank", "score"]
    writer.writerow([*header, *(name for name, _ in extra)])
    for label, (name, indices) in enumerate(zip(data.class_names, difficulty.order, strict=True)):
        for rank, index in enumerate(indices.tolist(), 1):
            found = [index, _file(data, index), label, name, rank, f"{float(difficulty.scores[index]):.9g}"]
            writer.writerow([*found, *(f"{float(values[index]):.9g}" for _, values in extra)])
    # File names may hold bytes that are no text.
    return written.getvalue().encode("utf-8", "replace").decode("utf-8")


def _file(data: ImageDataset, index: int) -> str:
    return data.train_files[index] if data.train_files else ""


def contact_sheet(difficulty: Difficulty, data: ImageDataset) -> bytes:
    """PNG: one row per class, its easiest images (easy to hard) and then its hardest ones (to the hardest)."""
    chosen = [ends(indices) for indices in difficulty.order]
    rows = torch.cat(chosen)
    pixels = data.train_images[rows]
    in_range = bool((pixels.min() >= 0) and (pixels.max() <= 1))
    title = f"easiest {SHOWN}, then hardest {SHOWN} of each class by {difficulty.method}"
    drawn = image_grid(
        pixels, data.train_labels[rows], data.class_names, max_columns=2 * SHOWN, title=title, stretch=not in_range
    )
    return png_bytes(drawn)


def render(difficulty: Difficulty, data: ImageDataset, described: dict[str, Any], called: str) -> str:
    """One HTML page that needs no other file: the ends of every class, histograms over all images and per class."""
    span = float(difficulty.scores.min()), float(difficulty.scores.max())
    label = f"{difficulty.method}, easy to hard"
    everything = histogram(
        difficulty.scores.tolist(), x_label=label, y_label="training images", description="Difficulty of all images"
    )
    charts = [
        (
            name,
            histogram(
                difficulty.scores[indices].tolist(),
                x_label="",
                y_label="",
                description=f"Difficulty of the images of {name}",
                span=span,
            ),
        )
        for name, indices in zip(data.class_names[:_CLASSES], difficulty.order[:_CLASSES], strict=True)
    ]
    left = len(data.class_names) - len(charts)
    more = hint(f"{left} more classes are in the .csv and .json files." if left else "")
    summary = part("paragraph", f"{len(difficulty.scores):,} images · {len(difficulty.order)} classes")
    rows, listed = _ends(difficulty, data)
    says = f"The easiest {SHOWN} of each class and its hardest {SHOWN}; point at one, or tap it: score and place. "
    says += "All of them are in the .csv file."
    sections = [
        section("Easiest and hardest", hint(says) + gallery(rows)),
        section("All images", everything),
        section("Each class, on the same scale", part("multiples", charts) + more),
        details("Easiest and hardest, by file" if data.train_files else "Easiest and hardest, by index", listed),
        details("Settings", difficulty.settings),
        details("Versions", described["versions"]),
        details("Classes", {row["name"]: _quartiles(row) for row in described["classes"]}),
    ]
    return page(f"Difficulty of {called}", summary, sections)


def _quartiles(described: Mapping[str, Any]) -> str:
    low, middle, high = described["quartiles"]
    return f"{described['images']:,} images: half of them from {low:.4g} to {high:.4g}, median {middle:.4g}"


def _ends(difficulty: Difficulty, data: ImageDataset) -> tuple[list[PictureRow], dict[str, str]]:
    """The easiest and hardest images of each class, as pictures and by what they are called."""
    rows, listed = [], {}
    for name, indices in zip(data.class_names[:_CLASSES], difficulty.order[:_CLASSES], strict=True):
        chosen = ends(indices)
        ranks = ends(torch.arange(len(indices))).tolist()
        pictures, called = [], []
        for position, (index, rank, image) in enumerate(
            zip(chosen.tolist(), ranks, small(data.train_images[chosen]), strict=True)
        ):
            at = _file(data, index) or f"index {index}"
            note = f"{difficulty.method} {float(difficulty.scores[index]):.4g}, {at}"
            gap = position > 0 and rank != ranks[position - 1] + 1
            title = f"{name}, number {rank + 1:,} of {len(indices):,} from the easiest"
            pictures.append(Picture(single_png(image), title, note=note, gap=gap))
            called.append(f"{at} ({float(difficulty.scores[index]):.4g})")
        rows.append(PictureRow(name, pictures))
        listed[name] = " · ".join(called)
    return rows, listed
