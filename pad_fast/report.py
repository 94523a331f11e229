"""The report of a run: one HTML file that needs no network, no script and no other file.

The page holds nothing that depends on when or where it was made, so two runs that computed the same numbers
write the same bytes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from .charts import Line, histogram, line_chart, moving_median
from .errors import InputError
from .evaluation import AccuracyRow


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: the headline.
        settings: the run's configuration, flat. Leave out what differs between equal runs (paths).
        versions: name and version of what computed it.
        accuracy: one row per training set and network: the distilled images beside random real images and
            the full data.
        history: one mapping per iteration with `iteration`, `loss`, `lr` (the student's learned rate) and
            `skipped` (0 or 1); other keys are ignored, and a method without `lr` or `skipped` leaves them out.
        grid_png: the images as a PNG file; empty bytes leave the section out.
        difficulty: class name -> scores of its training images, or None.
        notes: sentences shown under the accuracies.
    """

    title: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    accuracy: Sequence[AccuracyRow]
    history: Sequence[Mapping[str, float]]
    grid_png: bytes
    difficulty: Mapping[str, Sequence[float]] | None = None
    notes: Sequence[str] = ()


def render_report(data: ReportData) -> str:
    """The report as one HTML page (UTF-8) for light and dark screens, phones and paper.

    Raises:
        InputError: `grid_png` is not a PNG file.

    Example:
        >>> row = AccuracyRow("distilled", "ConvNet", (93.1, 94.1))
        >>> page = render_report(ReportData("digits", {"ipc": 1}, {}, [row], [], b""))
        >>> "93.6" in page and "script" not in page
        True
    """
    sections = [
        _accuracy(data.accuracy, data.notes),
        sheet("Synthetic images", data.grid_png, "Synthetic images, one row per class"),
        _loss(data.history, data.settings),
        _learning_rate(data.history),
        _difficulty(data.difficulty),
        details("Settings", data.settings),
        details("Versions", data.versions),
    ]
    return page(data.title, _summary(data.settings), sections)


def page(title: str, summary: str, sections: Sequence[str]) -> str:
    """A whole page of sections; empty ones are left out. `summary` is HTML that goes under the title."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{_text(title)}</h1>{summary}</header>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _summary(settings: Mapping[str, object]) -> str:
    """The few settings that say what was run, under the title."""
    parts = [f"{key} {_value(settings[key])}" for key in _SUMMARY if settings.get(key) is not None]
    return f"<p>{_text(' · '.join(parts))}</p>" if parts else ""


def _accuracy(rows: Sequence[AccuracyRow], notes: Sequence[str]) -> str:
    if rows:
        cells = "".join(_accuracy_row(row) for row in rows)
        table = (
            '<div class="scroll"><table class="accuracy"><thead><tr><th scope="col">Trained on</th>'
            '<th scope="col">Network</th><th scope="col" class="number">Accuracy, %</th>'
            '<th scope="col" class="wide"><span class="hidden">0 to 100 %</span></th>'
            '<th scope="col" class="number">Networks</th>'
            f"</tr></thead><tbody>{cells}</tbody></table></div>"
        )
        if any(row.networks > 1 for row in rows):
            table += '<p class="hint">± is the standard deviation over the networks trained.</p>'
    else:
        table = '<p class="empty">Not evaluated yet.</p>'
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return section("Test accuracy", table + (f'<ul class="notes">{listed}</ul>' if listed else ""))


def _accuracy_row(row: AccuracyRow) -> str:
    known = math.isfinite(row.mean)
    spread = row.std if known and row.networks > 1 and math.isfinite(row.std) else None
    mean = f"<strong>{row.mean:.1f}</strong>" if known else "n/a"
    deviation = f' <span class="std">± {spread:.1f}</span>' if spread is not None else ""
    bar = ""
    if known:
        length = min(max(row.mean, 0.0), 100.0)
        bar = f'<rect class="bar" x="0" y="3" width="{length:.2f}" height="10"/>'
        if spread:
            left, right = max(0.0, length - spread), min(100.0, length + spread)
            bar += f'<path class="whisker" d="M{left:.2f} 8H{right:.2f}"/>'
    return (
        f'<tr><th scope="row">{_text(row.name)}</th><td>{_text(row.model)}</td>'
        f'<td class="number">{mean}{deviation}</td>'
        '<td class="wide"><svg viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" x="0" y="3" width="100" height="10"/>{bar}</svg></td>'
        f'<td class="number">{row.networks}</td></tr>'
    )


def sheet(heading: str, png: bytes, description: str) -> str:
    """A section with a contact sheet (a PNG file's bytes); nothing for empty bytes.

    Raises:
        InputError: the bytes are not a PNG file.
    """
    if not png:
        return ""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise InputError("the report's image grid is not a PNG file; pass the bytes png_bytes() returns")
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    # Wide sheets scroll sideways; a phone shrinks them, but not until the class names cannot be read.
    smallest = min(width, max(560, width // 2))
    source = base64.b64encode(png).decode("ascii")
    return section(
        heading,
        f'<div class="scroll sheet" tabindex="0"><img src="data:image/png;base64,{source}" width="{width}" '
        f'height="{height}" style="--least:{smallest}px" alt="{_text(description)}"></div>',
    )


def _loss(history: Sequence[Mapping[str, float]], settings: Mapping[str, object]) -> str:
    rows = [row for row in history if math.isfinite(row.get("loss", math.nan))]
    xs = [_iteration(row, number) for number, row in enumerate(rows)]
    ys = [float(row["loss"]) for row in rows]
    lines = [Line(xs, ys, "each iteration", "raw" if len(ys) > 4 else "main")]
    if len(ys) > 4:
        window = max(5, len(ys) // 40) | 1
        lines.append(Line(xs, moving_median(ys, window), f"median of {window} iterations"))
    skipped = [_iteration(row, number) for number, row in enumerate(history) if row.get("skipped", 0)]
    threshold = settings.get("threshold")
    chart = line_chart(
        lines,
        x_label="iteration",
        y_label=_LOSSES.get(str(settings.get("method")), "distance to the expert, relative to the start"),
        description="Matching loss over iterations",
        marks=skipped,
        marks_label="skipped",
        limit=float(threshold) if isinstance(threshold, int | float) else None,
        limit_label="threshold",
    )
    hint = ""
    if history:
        hint = f"{len(history):,} iteration{'s' if len(history) > 1 else ''}"
        hint += f", {len(skipped):,} skipped." if any("skipped" in row for row in history) else "."
        if ys:
            hint += f" Median of the last tenth: {median(ys[-max(1, len(ys) // 10) :]):.4g}."
        hint = f'<p class="hint">{hint}</p>'
    return section("Matching loss", chart + hint)


def _learning_rate(history: Sequence[Mapping[str, float]]) -> str:
    rows = [row for row in history if math.isfinite(row.get("lr", math.nan))]
    xs = [_iteration(row, number) for number, row in enumerate(rows)]
    ys = [float(row["lr"]) for row in rows]
    if history and not rows:
        return ""
    chart = line_chart(
        [Line(xs, ys, "learning rate")],
        x_label="iteration",
        y_label="step size of the student's SGD, learned with the images",
        description="The student's learning rate over iterations",
    )
    hint = f'<p class="hint">From {ys[0]:.4g} to {ys[-1]:.4g}.</p>' if ys else ""
    return section("Student's learning rate", chart + hint)


def _difficulty(difficulty: Mapping[str, Sequence[float]] | None) -> str:
    if not difficulty:
        return ""
    scores = [float(score) for values in difficulty.values() for score in values]
    chart = histogram(
        scores,
        x_label="difficulty score, easy to hard",
        y_label="training images",
        description="Difficulty of the training images",
    )
    ranked = sorted(
        (median(values), name)
        for name, values in difficulty.items()
        if len(values) and all(math.isfinite(value) for value in values)
    )
    hint = ""
    if len(ranked) > 1:
        shown = min(3, len(ranked) // 2)
        easy = ", ".join(f"{name} ({score:.3g})" for score, name in ranked[:shown])
        hard = ", ".join(f"{name} ({score:.3g})" for score, name in ranked[: -shown - 1 : -1])
        hint = f"Easiest by class median: {easy}. Hardest: {hard}."
    return section("Difficulty", chart + (f'<p class="hint">{_text(hint)}</p>' if hint else ""))


def details(heading: str, values: Mapping[str, object] | Mapping[str, str]) -> str:
    """A folded section with a table of names and values; nothing where there are none."""
    if not values:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(key)}</th><td>{_text(_value(value))}</td></tr>' for key, value in values.items()
    )
    return (
        f"<details><summary><h2>{_text(heading)}</h2></summary>"
        f'<div class="scroll"><table class="pairs"><tbody>{rows}</tbody></table></div></details>'
    )


def section(heading: str, body: str) -> str:
    """A section; `body` is HTML."""
    return f"<section><h2>{_text(heading)}</h2>{body}</section>"


def _iteration(row: Mapping[str, float], position: int) -> float:
    return float(row.get("iteration", position))


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(part) for part in value) or "none"
    return str(value)


def _text(value: object) -> str:
    """Escaped text; a file name's undecodable bytes become question marks instead of an unwritable page."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


_LOSSES = {
    "dc": "distance between the gradients of real and synthetic images",
    "dsa": "distance between the gradients of real and synthetic images",
    "dm": "distance between the mean features of real and synthetic images",
}
_SUMMARY = ("dataset", "method", "ipc", "model", "iterations", "seed")

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dbe1;
  --card: #f4f6f8; --accent: #0b5fb5; --pale: #8db4dc; --warn: #b4530a; }
@media (prefers-color-scheme: dark) { :root { --paper: #11151a; --ink: #e7ebf0; --soft: #a3adb8;
  --rule: #323a43; --card: #1a2027; --accent: #74b5f8; --pale: #3f6a96; --warn: #f2a65a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: .35rem 0 0; }
h2 { font-size: 1.12rem; margin: 0 0 .6rem; }
section, details { margin-top: 2.4rem; }
details { margin-top: 1.4rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
summary { cursor: pointer; }
summary h2 { display: inline; }
.hint, .empty, .notes { color: var(--soft); font-size: .9rem; margin: .5rem 0 0; }
.notes { padding-left: 1.2rem; }
.hidden { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: middle; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
.std { color: var(--soft); }
.wide { width: 34%; min-width: 5rem; }
.wide svg { display: block; width: 100%; height: 16px; }
.pairs { margin-top: .8rem; font-size: .88rem; }
.pairs th { font-weight: 400; color: var(--soft); width: 14rem; }
.pairs td { overflow-wrap: anywhere; }
.track { fill: var(--card); }
.bar { fill: var(--accent); }
.whisker { stroke: var(--ink); stroke-width: 2; vector-effect: non-scaling-stroke; }
.sheet { max-height: 48rem; overflow: auto; background: #fff; border: 1px solid var(--rule); border-radius: 6px; }
.sheet img { display: block; height: auto; margin: 0 auto; image-rendering: pixelated; }
.chart { margin: 0; font-size: .8rem; color: var(--soft); }
.plot { position: relative; height: 240px; margin: .3rem .8rem 1.5rem 3.4rem; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; border-bottom: 1px solid var(--soft); }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
path.grid { stroke: var(--rule); stroke-width: 1; }
path.raw { stroke: var(--pale); stroke-width: 1; }
path.main { stroke: var(--accent); stroke-width: 2.2; }
path.dot { stroke-width: 8; }
path.limit { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 4; }
path.mark { stroke: var(--warn); stroke-width: 1.5; }
.plot span { position: absolute; line-height: 1; white-space: nowrap; font-variant-numeric: tabular-nums; }
.plot .y { right: calc(100% + .5rem); transform: translateY(50%); }
.plot .x { top: calc(100% + .5rem); transform: translateX(-50%); }
.x-label { text-align: center; margin-left: 3.4rem; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: .5rem 1.5rem; }
.multiples h3 { margin: .6rem 0 0 3.4rem; font-size: .95rem; } .multiples .plot { height: 110px; }
figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 0 3.4rem; }
.key::before { content: ""; display: inline-block; width: 1.3rem; height: 0; margin-right: .45rem;
  vertical-align: middle; border-top: 2px solid var(--accent); }
.key.raw::before { border-top: 1px solid var(--pale); }
.key.limit::before { border-top: 1px dashed var(--soft); }
.key.mark::before { width: 0; height: .8rem; border-top: 0; border-left: 2px solid var(--warn); }
@media (max-width: 560px) { main { padding: 1.25rem 1rem 2rem; } .wide { display: none; }
  table { font-size: .85rem; } th, td { padding-right: .55rem; } thead th { font-size: .75rem; }
  .sheet img { width: var(--least); }
  .plot { height: 200px; } .pairs th { width: 9rem; } h1 { font-size: 1.4rem; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb;
  --card: #eee; --accent: #0b5fb5; --pale: #8db4dc; --warn: #b4530a; }
  main { max-width: none; padding: 0; } section, tr, figure { break-inside: avoid; }
  .scroll, .sheet { overflow: visible; max-height: none; } .sheet img { width: auto; max-width: 100%; }
  details::details-content { content-visibility: visible; display: block; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
