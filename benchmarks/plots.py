"""Curves as PNG files, drawn with Pillow: time and memory against T and batch; accuracy over iterations and hours.

python -m benchmarks.plots benchmarks/results/unroll-cpu.json --out docs/images
python -m benchmarks.plots benchmarks/results/reproduce-digits-ipc1.json --out docs/images
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Axis:
    """From `low` to `high` as `scale` has them; `ticks` are values."""

    scale: Callable[[float], float]
    low: float
    high: float
    ticks: Sequence[float]

    def part(self, value: float) -> float:
        """Where a value is: 0 at the low end, 1 at the high one."""
        return (self.scale(value) - self.low) / (self.high - self.low)


def log_log(curves: Curves, *, title: str, x_label: str, y_label: str) -> Image.Image:
    """Draw positive points (x, y) of named curves; a curve's points are joined in the order of x.

    Raises:
        ValueError: no point, one that has no logarithm, or more curves than there are colours.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points or min(min(point) for point in points) <= 0:
        raise ValueError("curves on logarithmic axes need points, all of them positive")
    xs, ys = ([math.log10(point[axis]) for point in points] for axis in (0, 1))
    # Whole decades, at least one: slopes can be read off.
    low = math.floor(min(ys))
    high = max(math.ceil(max(ys)), low + 1)
    across = _Axis(math.log10, min(xs) - 0.05, max(xs) + 0.05, sorted({point[0] for point in points}))
    upwards = _Axis(math.log10, low, high, [10.0**decade for decade in range(low, high + 1)])
    return _drawn(curves, across, upwards, title=title, x_label=x_label, y_label=y_label)


def linear(curves: Curves, *, title: str, x_label: str, y_label: str) -> Image.Image:
    """The same on linear axes, of which the horizontal one begins at 0.

    Raises:
        ValueError: no point, or more curves than there are colours.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("curves need points")
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    across, upwards = _round_axis(0.0, max(xs)), _round_axis(min(ys), max(ys))
    return _drawn(curves, across, upwards, title=title, x_label=x_label, y_label=y_label)


def _round_axis(low: float, high: float) -> _Axis:
    """An axis between round numbers, with about five ticks."""
    wide = (high - low) or abs(high) or 1.0
    decade = 10.0 ** math.floor(math.log10(wide / 5))
    step = next(decade * factor for factor in (1, 2, 5, 10) if decade * factor >= wide / 5)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    ticks = [step * number for number in range(first, last + 1)]
    return _Axis(float, ticks[0], ticks[-1], ticks)


def _drawn(curves: Curves, across: _Axis, upwards: _Axis, *, title: str, x_label: str, y_label: str) -> Image.Image:
    if len(curves) > len(_COLOURS):
        raise ValueError(f"{len(curves)} curves, and {len(_COLOURS)} colours to tell them apart")
    image = Image.new("RGB", _SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font, heading = (ImageFont.load_default(size) for size in (15, 18))
    bottom = _SIZE[1] - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + across.part(x) * (_SIZE[0] - _LEFT - _RIGHT), bottom - upwards.part(y) * (bottom - _TOP)

    for y in upwards.ticks:
        _, at = place(across.ticks[0], y)
        draw.line((_LEFT, at, _SIZE[0] - _RIGHT, at), fill=_GRID)
        draw.text((_LEFT - 8, at), f"{y:g}", fill=_INK, font=font, anchor="rm")
    for x in across.ticks:
        at, _ = place(x, upwards.ticks[0])
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


def draw_reproduction(result: Path, out: Path) -> list[Path]:
    """The two pictures of one result of `benchmarks.reproduce`: accuracy on held-out images over iterations and hours.

    The plain loop's curve over hours is that of the same iterations, later by what each of them takes it longer, as far
    as the hours go.
    """
    content = json.loads(result.read_text(encoding="utf-8"))
    points = [
        {**point, "accuracy": statistics.fmean(point["accuracies"])}
        for point in content["curve"]
        if point["accuracies"]
    ]
    if not points:
        return []
    costs, setting = content["costs"], content["setting"]
    longer = (costs["plain_iteration"] - costs["iteration"]) / 3600
    reached = [statistics.fmean(point["accuracies"]) for point in points]
    counts, spent = [point["iteration"] for point in points], [point["hours"] for point in points]
    hours = list(zip(spent, reached, strict=True))
    plain = [(when + longer * count, each) for when, count, each in zip(spent, counts, reached, strict=True)]
    iterations = {"ours": list(zip(counts, reached, strict=True))}
    within = [point for point in plain if point[0] <= hours[-1][0]]
    over_hours = {"ours": hours, **({"the plain loop": within} if within else {})}
    title, y_label = f"{setting}: networks tested on held-out training images", "accuracy, %"
    return [
        files.write_bytes(
            out / f"reproduce-{setting}-{name}.png",
            png_bytes(linear(curves, title=title, x_label=name, y_label=y_label)),
        )
        for name, curves in (("iterations", iterations), ("hours", over_hours))
    ]


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
    parser.add_argument("result", type=Path, help="JSON file that benchmarks.unroll or benchmarks.reproduce wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    options = parser.parse_args(argv)
    suite = json.loads(options.result.read_text(encoding="utf-8"))["suite"]
    draw = {"unroll": draw_unroll, "reproduce": draw_reproduction}[suite]
    for path in draw(options.result, options.out):
        print(f"written to {path}")


if __name__ == "__main__":
    main()
