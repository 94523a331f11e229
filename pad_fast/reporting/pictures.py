"""The images of a distilled set as a page shows them: by class, beside what they were made of, and over iterations."""

from __future__ import annotations

from torch import Tensor

from ..data.arrays import to_bytes
from ..data.distilled import DistilledDataset
from ..runs.film import FRAME_SIDE, Film, shown_images
from ..runs.preview import SIDE, small
from .contact_sheet import single_png
from .film_section import FilmStrip
from .html.gallery import Picture, PictureRow

_LABELS = 5  # of a soft label
_LARGE = 20  # images that a page shows as they are; more of them are made smaller


def picture_rows(distilled: DistilledDataset, film: Film | None = None) -> tuple[tuple[PictureRow, ...], str]:
    """The first images of each class, and a sentence about what is not shown or not as it is."""
    names = class_names(distilled)
    starts = {} if film is None else dict(zip(film.indices.tolist(), film.start, strict=True))
    probabilities = None if distilled.label_logits is None else distilled.label_logits.softmax(-1)
    counts = distilled.labels.bincount().tolist()
    rows = []
    shown = shown_images(distilled.labels)
    side = max(distilled.images.shape[2:])
    reduced = side > SIDE and sum(len(chosen) for _, chosen in shown) > _LARGE
    for label, chosen in shown:
        pictures: list[Picture] = []
        before: list[Picture] = []
        drawn = drawable(distilled, chosen)
        drawn = small(drawn / 255) if reduced else drawn
        for position, (index, image) in enumerate(zip(chosen.tolist(), drawn, strict=True), 1):
            title = f"{names[label]}, image {position} of {counts[label]}" if counts[label] > 1 else names[label]
            bars: tuple[tuple[str, float], ...] = ()
            moved = ""
            if probabilities is not None:
                bars = soft_label(probabilities[index], names)
                moved = names[int(probabilities[index].argmax())] if distilled.moved[index] else ""
            pictures.append(Picture(single_png(image), title, bars, "" if bars else "hard label", moved=moved))
            if index in starts:
                before.append(Picture(single_png(starts[index]), f"{title}, at the start"))
        rows.append(PictureRow(names[label], pictures, before if len(before) == len(pictures) else ()))
    remarks = []
    left = len(distilled.labels) - sum(len(row.pictures) for row in rows)
    if left:
        remarks.append(f"{left:,} more are not shown.")
    if distilled.whitening is None:
        remarks.append("Drawn as they are trained on (whitened), each stretched to its own range.")
    if reduced:
        remarks.append(f"Drawn with {SIDE} pixels of {side}.")
    channels = distilled.images.shape[1]
    if channels not in (1, 3):
        remarks.append(f"The mean of {channels} channels is drawn, in grey.")
    return tuple(rows), " ".join(remarks)


def film_strip(distilled: DistilledDataset, film: Film | None, last: int, *, finished: bool) -> FilmStrip | None:
    """The frames of a film and then the set itself, that after iteration `last`; nothing without any before."""
    before = [] if film is None else [iteration for iteration in film.iterations if iteration < last]
    if film is None or not before:
        return None
    names = class_names(distilled)
    columns = ["start", *(f"{iteration:,}" for iteration in before[1:]), "result" if finished else "now"]
    rows = []
    ends = small(drawable(distilled, film.followed) / 255, FRAME_SIDE)
    for place, label in enumerate(distilled.labels[film.followed].tolist()):
        images = [*film.frames[: len(before), place], ends[place]]
        titles = [f"{names[label]}, {f'after {column}' if column[0].isdecimal() else column}" for column in columns]
        rows.append(PictureRow(names[label], [Picture(single_png(i), t) for i, t in zip(images, titles, strict=True)]))
    return FilmStrip(columns, rows)


def soft_label(probabilities: Tensor, names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """The largest entries of a soft label `[classes]`, by name, largest first."""
    values, indices = probabilities.sort(descending=True, stable=True)
    pairs = zip(indices[:_LABELS].tolist(), values[:_LABELS].tolist(), strict=True)
    return tuple((names[index], value) for index, value in pairs)


def drawable(distilled: DistilledDataset, indices: Tensor) -> Tensor:
    """Some of the images as bytes `[n, C, H, W]`: pixels where whitening can be undone."""
    images = distilled.images[indices]
    if distilled.whitening is None:
        return to_bytes(images, stretch=True)
    return to_bytes(distilled.whitening.invert(images))


def class_names(distilled: DistilledDataset) -> tuple[str, ...]:
    """Names of all classes; numbers where the set does not know them."""
    return distilled.class_names or tuple(str(label) for label in range(distilled.classes))
