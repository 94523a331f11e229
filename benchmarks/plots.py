"""Curves on two logarithmic axes as PNG files, drawn with Pillow: time and memory against T and batch.

python -m benchmarks.plots benchmarks/results/unroll-cpu.json --out docs/images
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.unroll import WEIGHED
from pad_fast.reporting.contact_sheet import png_bytes
from pad_fast.runtime import files

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (900, 520), 90, 270, 50, 60
_INK, _GRID = (32, 33, 36), (222, 224, 228)
# Distinguishable without colour vision (Okabe and Ito); each curve also has a marker of its own.
_COLOURS = ((213, 94, 0), (230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233))

Curves = Mapping[str, Sequence[tuple[float, float]]]


def log_log(curves: Curves, *, title: str, x_label: str, y_label: str) -> Image.Image:
    """Draw positive points (x, y) of named curves; a curve's points are joined in the order of x.

    Raises:
        ValueError: no point, one that has no logarithm, or more curves than there are colours.
    """
    if len(curves) > len(_COLOURS):
        raise ValueError(f"{len(curves)} curves, and {len(_COLOURS)} colours to tell them apart")
    points = [point for curve in curves.values() for point in curve]
    if not points or min(min(point) for point in points) <= 0:
        raise ValueError("curves on logarithmic axes need points, all of them positive")
    image = Image.new("RGB", _SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font, heading = (ImageFont.load_default(size) for size in (15, 18))
    xs, ys = ([math.log10(point[axis]) for point in points] for axis in (0, 1))
    x_low, x_high = min(xs) - 0.05, max(xs) + 0.05
    # Whole decades, at least one: slopes can be read off.
    y_low = math.floor(min(ys))
    y_high = max(math.ceil(max(ys)), y_low + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low) * (_SIZE[0] - _LEFT - _RIGHT)
        up = (math.log10(y) - y_low) / (y_high - y_low) * (_SIZE[1] - _TOP - _BOTTOM)
        return _LEFT + across, _SIZE[1] - _BOTTOM - up

    bottom = _SIZE[1] - _BOTTOM
    for decade in range(y_low, y_high + 1):
        _, y = place(10**x_low, 10.0**decade)
        draw.line((_LEFT, y, _SIZE[0] - _RIGHT, y), fill=_GRID)
        draw.text((_LEFT - 8, y), f"{10.0**decade:g}", fill=_INK, font=font, anchor="rm")
    for x in sorted({point[0] for point in points}):
        at, _ = place(x, 10.0**y_low)
        draw.line((at, _TOP, at, bottom), fill=_GRID)
        draw.text((at, bottom + 8), f"{x:g}", fill=_INK, font=font, anchor="mt")
    draw.rectangle((_LEFT, _TOP, _SIZE[0] - _RIGHT, bottom), outline=_INK)
    draw.text((_LEFT, _TOP // 2), title, fill=_INK, font=heading, anchor="lm")
    draw.text(((_LEFT + _SIZE[0] - _RIGHT) / 2, _SIZE[1] - 12), x_label, fill=_INK, font=font, anchor="ms")
    draw.text((_SIZE[0] - _RIGHT + 20, _TOP), y_label, fill=_INK, font=font, anchor="lt")
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number]
        spots = [place(*point) for point in sorted(curve)]
        # Later curves are thinner: one that lies on an earlier one leaves its edges to be seen.
        more = len(curves) - 1 - number
        draw.line(spots, fill=colour, width=3 + 2 * more)
        for spot in spots:
            _mark(draw, spot, number, colour, 5 + more)
        row = _TOP + 40 + 26 * number
        _mark(draw, (_SIZE[0] - _RIGHT + 28, row), number, colour, 6)
        draw.text((_SIZE[0] - _RIGHT + 44, row), name, fill=_INK, font=font, anchor="lm")
    return image


def draw_unroll(result: Path, out: Path) -> list[Path]:
    """The four pictures of one result of `benchmarks.unroll`: time and memory against T and against the batch.

    They show the rivals of the memory table. A picture whose curves would be single points is left out.
    """
    content = json.loads(result.read_text(encoding="utf-8"))
    timed = [
        {**row, "seconds": row["ms_per_step"]["median"] * row["steps"] / 1e3}
        for row in content["rows"]
        if row["mask"] == "none" and row["rival"] in WEIGHED
    ]
    written = []
    for quantity, key, unit, rows in (
        ("time", "seconds", "seconds for one gradient", timed),
        ("memory", "peak_mib", "peak memory, MiB", content["memory"]),
    ):
        for against, fixed, label in (("steps", "batch", "student steps T"), ("batch", "steps", "batch")):
            curves, at = _series(rows, key, against, fixed)
            if curves:
                name = "T" if fixed == "steps" else "batch"
                title = f"One gradient of the matching loss, {name} = {at}"
                picture = log_log(curves, title=title, x_label=label, y_label=unit)
                written.append(files.write_bytes(out / f"unroll-{quantity}-{against}.png", png_bytes(picture)))
    return written


def _series(rows: Sequence[dict[str, Any]], key: str, against: str, fixed: str) -> tuple[dict[str, list[Any]], int]:
    """Curves of the rivals against one axis, at the value of the other that gives the longest ones."""
    rows = [row for row in rows if row[key] == row[key] and row[key] > 0]
    best: tuple[dict[str, list[Any]], int] = {}, 0
    longest = 1
    for at in sorted({row[fixed] for row in rows}):
        curves: dict[str, list[Any]] = {}
        for row in rows:
            if row[fixed] == at:
                curves.setdefault(row["rival"], []).append((row[against], row[key]))
        curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
        length = max(map(len, curves.values()), default=0)
        if length > longest:
            best, longest = (curves, at), length
    return best


def _mark(
    draw: ImageDraw.ImageDraw, spot: tuple[float, float], number: int, colour: tuple[int, int, int], r: float
) -> None:
    x, y = spot
    kind = number % 3
    if kind == 0:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == 1:
        draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    else:
        draw.polygon([(x, y - r - 1), (x + r + 1, y + r), (x - r - 1, y + r)], fill=colour)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="JSON file that benchmarks.unroll wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    options = parser.parse_args(argv)
    for path in draw_unroll(options.result, options.out):
        print(f"written to {path}")


if __name__ == "__main__":
    main()
