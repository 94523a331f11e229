"""Small charts as HTML fragments: lines over iterations, histograms, and bands.

The curves are inline SVG stretched to the width of the page; ticks and labels are HTML text laid over it, so
that they keep their size on a phone. Values are read without a script: the plot is covered with columns, each a choice
of one group, that show theirs when they are pointed at, tapped, or reached with the arrow keys. Colours are CSS
variables of the page (`page.py`), which has a light and a dark set. The same data gives the same characters.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from markupsafe import Markup

from .page import empty

_WIDTH, _HEIGHT = 1000.0, 300.0  # of the SVG's own coordinates; the page stretches them
_MOST_POINTS = 1200
_READINGS = 24  # at most on one chart
_ZOOM = 2.0  # percentage points that an axis of accuracies spans at least


@dataclass(frozen=True)
class Line:
    """One curve; points that are not finite are left out.

    Attributes:
        style: "main" (strong), "raw" (thin and pale), or "series c0" to "series c7" (one of several) and "series r0" to
            "series r7" (the same, in an order).
        spread: half the length of an error bar at every point, in units of y; none where it is empty or 0.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str
    style: str = "main"
    spread: Sequence[float] = ()


@dataclass(frozen=True)
class Group:
    """Values of a histogram that are told apart from the others: `style` "bar", or "part" and a colour."""

    label: str
    values: Sequence[float]
    style: str = "bar"


@dataclass(frozen=True)
class Reading:
    """What a chart says at one place, `at`, of its horizontal axis, whose column is between these fractions of it."""

    left: float
    right: float
    at: str
    values: Sequence[str]


@dataclass(frozen=True)
class Band:
    """The area between two curves that hold each value until the next x."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    description: str,
    marks: Sequence[float] = (),
    marks_label: str = "",
    limit: float | None = None,
    limit_label: str = "",
    whole: bool = True,
) -> Markup:
    """Curves over a common x, with ticks on both axes.

    The vertical range is that of the data, unless a few points are so far above the rest that they would
    flatten it; those are cut off and the chart says how many.

    Args:
        lines: the curves, drawn in this order; a curve of one point is a dot.
        x_label: name of the horizontal axis.
        y_label: name and unit of the vertical axis.
        description: what the chart shows, for screen readers.
        marks: x positions marked by a tick at the bottom.
        marks_label: what such a tick means.
        limit: a dashed horizontal line, drawn where it is inside the range.
        limit_label: what the line means.
        whole: x counts something, and only whole numbers get a tick.

    Returns:
        A `<figure>`; a sentence instead of curves when there is no finite point.
    """
    curves = [(line, _finite(line.x, line.y)) for line in lines]
    points = [point for _, curve in curves for point in curve]
    if not points:
        return empty("Nothing recorded.")
    errors = [error for line in lines for error in _errors(line)]
    x_range = _span([x for x, _ in points])
    x_low, x_high = x_range
    # Around a single iteration the axis is padded; only iterations that exist get a tick.
    across = [x for x in ticks(*x_range, whole=whole) if min(points)[0] <= x <= max(points)[0]]
    values = sorted(y for _, y in points)
    cut = _cut(values)
    seen = [y for y in values if y <= cut] + [end for _, low, high in errors for end in (low, high)]
    y_low, y_high = _span(seen, margin=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        shown = min(y, y_high)
        return _WIDTH * (x - x_low) / (x_high - x_low), _HEIGHT * (y_high - shown) / (y_high - y_low)

    body = [_grid_line(place(x_low, y)[1]) for y in ticks(y_low, y_high)]
    legend = []
    if limit is not None and y_low <= limit <= y_high:
        height = place(x_low, limit)[1]
        body.append(f'<path class="limit" d="M0 {height:.1f}H{_WIDTH:g}"/>')
        legend.append(("limit", limit_label))
    for line, curve in curves:
        if curve:
            dot = " dot" if len(curve) == 1 else ""
            path = _path([place(*point) for point in _thin(curve)])
            body.append(f'<path class="{line.style}{dot}" d="{path}"/>')
            legend.append((line.style, line.label))
            if line.spread and len(curve) > 1:
                dots = "".join(_path([place(*point)]) for point in curve)
                body.append(f'<path class="{line.style} dot" d="{dots}"/>')
    if errors:
        places = [(*place(x, low), place(x, high)[1]) for x, low, high in errors]
        body.append(
            f'<path class="spread" d="{"".join(f"M{x:.1f} {low:.1f}V{high:.1f}" for x, low, high in places)}"/>'
        )
        legend.append(("spread", "± standard deviation"))
    spots = sorted({round(place(x, y_low)[0], 1) for x in marks if x_low <= x <= x_high})
    if spots:
        body.append(f'<path class="mark" d="{"".join(f"M{x:.1f} {_HEIGHT:g}v-12" for x in spots)}"/>')
        legend.append(("mark", marks_label))
    beyond = len({point for point in points if point[1] > cut})
    note = f"{beyond} point{'s' if beyond > 1 else ''} above the range of the chart" if beyond else ""
    axes = _Axis(x_label, x_range, across), _Axis(y_label, (y_low, y_high), ticks(y_low, y_high))
    return _figure(body, *axes, description, legend, note, _line_readings(lines, x_range, x_label))


def histogram(
    values: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    description: str,
    span: tuple[float, float] | None = None,
) -> Markup:
    """Counts of finite values in 5 to 30 bins of equal width (about the square root of their number).

    Args:
        values: what is counted.
        x_label, y_label: names of the axes.
        description: what the chart shows, for screen readers.
        span: lowest and highest of the horizontal axis, which all values lie between; theirs by default. Charts that
            are compared with each other need the same.

    Returns:
        A `<figure>`; a sentence instead of bars when there is no finite value.
    """
    return stacked_histogram([Group("", values)], x_label=x_label, y_label=y_label, description=description, span=span)


def stacked_histogram(
    groups: Sequence[Group],
    *,
    x_label: str,
    y_label: str,
    description: str,
    span: tuple[float, float] | None = None,
) -> Markup:
    """A :func:`histogram` of all values, each bar divided by group, the first at the bottom."""
    kept = [[float(value) for value in group.values if math.isfinite(value)] for group in groups]
    everything = [value for values in kept for value in values]
    if not everything:
        return empty("Nothing recorded.")
    low, high = _span(everything if span is None else span)
    bins = max(5, min(30, math.ceil(math.sqrt(len(everything)))))
    counts = [[0] * bins for _ in groups]
    for row, values in zip(counts, kept, strict=True):
        for value in values:
            row[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    top = max(map(sum, zip(*counts, strict=True))) * 1.05
    width = _WIDTH / bins
    up = ticks(0, top, whole=True)
    body = [_grid_line(_HEIGHT * (1 - y / top)) for y in up]
    for number in range(bins):
        base = _HEIGHT
        for group, row in zip(groups, counts, strict=True):
            if row[number]:
                height = _HEIGHT * row[number] / top
                base -= height
                body.append(
                    f'<rect class="{group.style}" x="{number * width + width * 0.06:.1f}" y="{base:.1f}" '
                    f'width="{width * 0.88:.1f}" height="{height:.1f}"/>'
                )
    across = _Axis(x_label, (low, high), ticks(low, high))
    legend = [(group.style, group.label) for group, values in zip(groups, kept, strict=True) if values]
    readings = []
    for number in range(bins):
        found = [(group.label, row[number]) for group, row in zip(groups, counts, strict=True) if row[number]]
        ends = [f"{low + (high - low) * end / bins:.3g}" for end in (number, number + 1)]
        said = [f"{label}: {count:,}" if label else f"{count:,}" for label, count in found]
        readings.append(Reading(number / bins, (number + 1) / bins, " to ".join(ends), said or ["0"]))
    return _figure(body, across, _Axis(y_label, (0.0, top), up), description, legend, "", readings)


def band_chart(band: Band, *, x_label: str, y_label: str, description: str, y_span: tuple[float, float]) -> Markup:
    """An area over a whole-numbered x, of which each is the left end of a step that is one wide.

    Returns:
        A `<figure>`; a sentence instead when the band has no point.
    """
    if not band.x:
        return empty("Nothing recorded.")
    (x_low, x_high), (y_low, y_high) = (min(band.x), max(band.x) + 1), y_span

    def place(x: float, y: float) -> str:
        return f"{_WIDTH * (x - x_low) / (x_high - x_low):.1f} {_HEIGHT * (y_high - y) / (y_high - y_low):.1f}"

    over = [place(x + side, y) for x, y in zip(band.x, band.high, strict=True) for side in (0, 1)]
    under = [place(x + side, y) for x, y in zip(band.x, band.low, strict=True) for side in (0, 1)]
    up = ticks(y_low, y_high)
    body = [f'<path class="area" d="M{"L".join([*over, *reversed(under)])}Z"/>']
    body += [_grid_line(_HEIGHT * (y_high - y) / (y_high - y_low)) for y in up]
    across = _Axis(x_label, (x_low, x_high), ticks(x_low, x_high, whole=True))
    readings = []
    chosen = sorted({round(number * (len(band.x) - 1) / (_READINGS - 1)) for number in range(_READINGS)})
    ends = [*(band.x[step] for step in chosen), x_high]
    for step, start, stop in zip(chosen, ends, ends[1:], strict=False):
        said = f"{band.low[step]:.3g} to {band.high[step]:.3g}"
        left, right = ((x - x_low) / (x_high - x_low) for x in (start, stop))
        readings.append(Reading(left, right, f"{x_label} {band.x[step]:g}", [said]))
    return _figure(body, across, _Axis(y_label, y_span, up), description, [], "", readings)


def accuracy_span(ends: Sequence[float]) -> tuple[float, float]:
    """An axis of percentages that these fit into and fill, at least two points wide."""
    finite = [end for end in ends if math.isfinite(end)]
    if not finite:
        return 0.0, 100.0
    room = max((max(finite) - min(finite)) * 0.08, (_ZOOM - (max(finite) - min(finite))) / 2)
    return max(0.0, min(finite) - room), min(100.0, max(finite) + room)


def accuracy_axis(span: tuple[float, float]) -> Markup:
    """The ticks of :func:`accuracy_dot`, for the heading of its column."""
    return _drawn(_Axis("", span, ticks(*span, most=4)).spans("x", "left"))


def accuracy_dot(mean: float, spread: float | None, span: tuple[float, float], *, own: bool) -> Markup:
    """A dot at `mean` percent on the axis `span`, with a whisker of `spread` to both sides; `own` ones stand out."""

    def place(value: float) -> float:
        return 100 * (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0])

    drawn = "".join(f'<path class="grid" d="M{place(x):.2f} 0V16"/>' for x in ticks(*span, most=4))
    if math.isfinite(mean):
        if spread and math.isfinite(spread):
            drawn += f'<path class="whisker" d="M{place(mean - spread):.2f} 8H{place(mean + spread):.2f}"/>'
        drawn += f'<path class="{"spot own" if own else "spot"}" d="M{place(mean):.2f} 8h0"/>'
    return _drawn(f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>')


def smoothing_window(count: int) -> int:
    """Over how many of `count` points a noisy curve is smoothed: an odd number, a fortieth of them, at least 5."""
    return max(5, count // 40) | 1


def moving_median(values: Sequence[float], window: int) -> list[float]:
    """The median of the `window` values around each one; at the ends, of those that exist."""
    half = window // 2
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def ticks(low: float, high: float, *, most: int = 5, whole: bool = False) -> list[float]:
    """At most `most + 1` round numbers (1, 2 or 5 times a power of ten apart) in [low, high].

    Example:
        >>> ticks(0.0, 0.93)
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(number * step, digits) for number in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with as many decimals as the finest tick needs; powers of ten where plain digits get long.

    Example:
        >>> tick_labels([0.0, 0.5, 1.0]), tick_labels([1e-05, 2e-05])
        (['0.0', '0.5', '1.0'], ['1e-5', '2e-5'])
    """
    digits = max((len(f"{value:.9f}".rstrip("0").split(".")[1]) for value in values), default=0)
    if max(map(abs, values), default=0.0) >= 1e6 or digits > 4:
        return [f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e") for value in values]
    return [f"{value:.{digits}f}" for value in values]


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    pairs = ((float(x), float(y)) for x, y in zip(xs, ys, strict=True))
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _errors(line: Line) -> list[tuple[float, float, float]]:
    """(x, lowest, highest) of the points that have an error bar."""
    if not line.spread:
        return []
    triples = zip(line.x, line.y, line.spread, strict=True)
    return [(x, y - s, y + s) for x, y, s in triples if s > 0 and all(map(math.isfinite, (x, y, s)))]


def _span(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    """Lowest and highest with a margin; around a single value, room to draw it in the middle."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    extra = (high - low) * margin
    # Quantities that are never negative should not get an axis that starts below zero.
    return (max(low - extra, 0.0) if low >= 0 else low - extra), high + extra


def _cut(ordered: Sequence[float]) -> float:
    """Where to end the axis: at the highest point that is not far above the lower 98 percent."""
    usual = ordered[min(len(ordered) - 1, int(len(ordered) * 0.98))]
    fence = usual + 2 * (usual - ordered[0])
    return max(value for value in ordered if value <= fence)


def _thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep each bin's lowest and highest point of a long curve: the same picture from fewer points."""
    if len(curve) <= _MOST_POINTS:
        return curve
    size = math.ceil(len(curve) / (_MOST_POINTS // 2))
    kept = []
    for start in range(0, len(curve), size):
        piece = range(start, min(start + size, len(curve)))
        ends = {min(piece, key=lambda i: curve[i][1]), max(piece, key=lambda i: curve[i][1])}
        kept += [curve[i] for i in sorted(ends)]
    return kept


def _path(points: list[tuple[float, float]]) -> str:
    if len(points) == 1:
        points = points * 2  # a line of no length with round ends is a dot
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _grid_line(y: float) -> str:
    return f'<path class="grid" d="M0 {y:.1f}H{_WIDTH:g}"/>'


@dataclass(frozen=True)
class _Axis:
    label: str
    span: tuple[float, float]
    ticks: list[float]

    def spans(self, kind: str, side: str) -> str:
        """The tick labels, each at its place between the ends of the axis."""
        low, high = self.span
        return "".join(
            f'<span class="{kind}" style="{side}:{100 * (value - low) / (high - low):.2f}%">{text}</span>'
            for value, text in zip(self.ticks, tick_labels(self.ticks), strict=True)
        )


def _line_readings(lines: Sequence[Line], span: tuple[float, float], x_label: str) -> list[Reading]:
    """The values of all curves at a few places, evenly spread over those where there are any."""
    curves = [(line.label, sorted(_finite(line.x, line.y))) for line in lines]
    xs = sorted({x for _, curve in curves for x, _ in curve})
    chosen = sorted({xs[round(number * (len(xs) - 1) / (_READINGS - 1))] for number in range(_READINGS)})
    ends = [span[0], *((a + b) / 2 for a, b in zip(chosen, chosen[1:], strict=False)), span[1]]
    readings = []
    for x, start, stop in zip(chosen, ends, ends[1:], strict=False):
        said = []
        for label, curve in curves:
            after = bisect_left(curve, (x, -math.inf))
            near = min(curve[max(0, after - 1) : after + 1], key=lambda point: abs(point[0] - x), default=None)
            if near is not None and start <= near[0] <= stop:
                said.append(f"{label}: {near[1]:.4g}" if len(curves) > 1 else f"{near[1]:.4g}")
        left, right = ((end - span[0]) / (span[1] - span[0]) for end in (start, stop))
        readings.append(Reading(left, right, f"{x_label} {x:,.10g}", said))
    return readings


def _hover(readings: Sequence[Reading], description: str) -> str:
    """The columns: one stop of the tabulator for all of them, and the arrow keys go from each to the next."""
    group = f"at{zlib.crc32(description.encode('utf-8', 'replace')):08x}"
    columns = []
    for reading in readings:
        side = "from-right" if reading.left + reading.right > 1 else "from-left"
        said = "".join(f"<i>{escape(value)}</i>" for value in reading.values)
        columns.append(
            f'<label style="left:{100 * reading.left:.2f}%;width:{100 * (reading.right - reading.left):.2f}%">'
            f'<input type="radio" name="{group}"><span class="{side}"><b>{escape(reading.at)}</b>{said}</span></label>'
        )
    return f'<div class="hover" role="radiogroup" aria-label="values">{"".join(columns)}</div>'


def _figure(
    body: list[str],
    x: _Axis,
    y: _Axis,
    description: str,
    legend: list[tuple[str, str]],
    note: str,
    readings: Sequence[Reading],
) -> Markup:
    keys = "".join(f'<span class="key {style}">{escape(label)}</span>' for style, label in legend)
    if len(legend) < 2:
        keys = ""
    if note:
        keys += f"<span>{escape(note)}</span>"
    return _drawn(
        f'<figure class="chart"><div class="y-label">{escape(y.label)}</div><div class="plot">'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img">'
        f"<title>{escape(description)}</title>{''.join(body)}</svg>"
        f"{y.spans('y', 'bottom')}{x.spans('x', 'left')}{_hover(readings, description)}</div>"
        f'<div class="x-label">{escape(x.label)}</div>'
        + (f"<figcaption>{keys}</figcaption>" if keys else "")
        + "</figure>"
    )


def _drawn(markup: str) -> Markup:
    """A finished chart, whose words are escaped where it is put together; the one place that marks charts as safe."""
    return Markup(markup)
