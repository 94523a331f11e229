"""The report: every number it was given is on the page, hostile text is inert, and equal data give equal bytes."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from pad_fast.charts import Line, histogram, line_chart, moving_median, tick_labels, ticks
from pad_fast.errors import InputError
from pad_fast.evaluation import AccuracyRow
from pad_fast.grid import image_grid, png_bytes
from pad_fast.report import ReportData, render_report

VOID = {"meta", "img", "br", "path", "rect"}
HOSTILE = """</title><script>alert("x")</script><img src='https://evil.example/x' onerror=alert(1)>&amp;"""


class Page(HTMLParser):
    """Elements in order with their attributes and text; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.stack: list[str] = []
        self.feed(source)
        self.close()
        assert self.stack == [], self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.stack:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def small_png() -> bytes:
    torch.manual_seed(0)
    return png_bytes(image_grid(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), ["a", "b"]))


def history(count: int) -> list[dict[str, float]]:
    return [
        {"iteration": i, "loss": 0.4 + 0.9 / (1 + i / 9) + 0.1 * math.sin(i * 7), "lr": 0.02 + i * 1e-5,
         "skipped": int(i in (3, 5)), "start_epoch": i % 8}
        for i in range(count)
    ]  # fmt: skip


def report(**changes: Any) -> ReportData:
    data = ReportData(
        title="Digits, 1 image per class",
        settings={"dataset": "digits", "ipc": 1, "lr_img": 10.0, "zca": False, "strategy": ("color", "crop"),
                  "batch": None, "threshold": 1.0},
        versions={"pad_fast": "0.1.0", "torch": "2.13.0"},
        accuracy=[
            AccuracyRow("random real images", "ConvNetD2W32", (66.0, 69.94, 73.88)),
            AccuracyRow("distilled", "ConvNetD2W32", (93.0, 93.61, 94.22)),
            AccuracyRow("all images", "ResNet18", (99.8,)),
        ],
        history=history(60),
        grid_png=small_png(),
        difficulty={"zero": [0.1, 0.2, 0.3], "one": [0.4, 0.5], "two": [0.9, 1.1]},
        notes=("Two classes were filled up with real images.",),
    )  # fmt: skip
    return dataclasses.replace(data, **changes)


def test_accuracies_are_rows_in_order() -> None:
    rows = Page(render_report(report())).rows
    assert rows[1][:3] == ["random real images", "ConvNetD2W32", "69.9 ± 3.9"]
    assert rows[2][:3] == ["distilled", "ConvNetD2W32", "93.6 ± 0.6"]
    assert rows[3][:3] == ["all images", "ResNet18", "99.8"]
    assert [row[-1] for row in rows[1:4]] == ["3", "3", "1"]


def test_one_network_has_no_spread() -> None:
    page = Page(render_report(report(accuracy=[AccuracyRow("distilled", "ConvNet", (50.0,))])))
    assert page.rows[1][2] == "50.0"
    assert "±" not in page.text


def test_an_unknown_mean_is_not_a_number() -> None:
    page = Page(render_report(report(accuracy=[AccuracyRow("full", "ConvNet", (math.nan, 3.0))])))
    assert page.rows[1][2] == "n/a"


def test_bars_are_as_long_as_the_means() -> None:
    lengths = [float(rect["width"] or 0) for rect in Page(render_report(report())).all("rect")][:6]
    assert lengths == [100, 69.94, 100, 93.61, 100, 99.8]


def test_settings_versions_notes_and_title_are_shown() -> None:
    page = Page(render_report(report()))
    pairs = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert pairs == {
        "dataset": "digits", "ipc": "1", "lr_img": "10", "zca": "no", "strategy": "color, crop",
        "batch": "none", "threshold": "1", "pad_fast": "0.1.0", "torch": "2.13.0",
    }  # fmt: skip
    assert "Two classes were filled up with real images." in page.text
    assert page.text.count("Digits, 1 image per class") == 2
    assert "60 iterations, 2 skipped." in page.text
    assert "From 0.02 to 0.02059." in page.text


def test_the_grid_is_embedded_unchanged() -> None:
    data = report()
    (image,) = Page(render_report(data)).all("img")
    prefix, encoded = (image["src"] or "").split(",")
    assert prefix == "data:image/png;base64"
    assert base64.b64decode(encoded) == data.grid_png
    assert image["alt"]


def test_no_grid_no_image_and_foreign_bytes_are_refused() -> None:
    assert not Page(render_report(report(grid_png=b""))).all("img")
    with pytest.raises(InputError, match="not a PNG"):
        render_report(report(grid_png=b"GIF89a" + bytes(40)))


def test_hostile_text_is_inert_everywhere() -> None:
    """Class names, settings, notes and titles come from folder names and files: they must stay text."""
    page = Page(
        render_report(
            report(
                title=HOSTILE,
                settings={"dataset": HOSTILE, HOSTILE: HOSTILE},
                versions={HOSTILE: HOSTILE},
                accuracy=[AccuracyRow(HOSTILE, HOSTILE, (1.0, 2.0))],
                difficulty={HOSTILE: [0.1, 0.2], "b": [0.3], "c\udcff": [0.4]},
                notes=[HOSTILE],
            )
        )
    )
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert page.text.count('<script>alert("x")</script>') == 12
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_an_undecodable_name_can_be_written() -> None:
    render_report(report(title="folder \udcff")).encode("utf-8")


def test_nothing_is_loaded_from_elsewhere() -> None:
    source = render_report(report())
    assert "base64," in source
    markup = re.sub(r'"data:image/png;base64,[^"]*"', "", source)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<script|<iframe", markup)
    for _, attributes in Page(source).elements:
        assert not {"href", "srcset", "action"} & set(attributes)
        assert (attributes.get("src") or "data:").startswith("data:")


def test_both_themes_phones_and_paper_have_rules() -> None:
    source = render_report(report())
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    assert "@media (max-width" in source
    assert any(meta.get("name") == "viewport" for meta in Page(source).all("meta"))


def test_equal_data_give_equal_bytes_without_a_date() -> None:
    assert render_report(report()) == render_report(report())
    assert not re.search(r"\b(19|20)\d\d-\d\d|\d\d:\d\d", Page(render_report(report())).text)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 3000])
def test_any_length_of_history(count: int) -> None:
    source = render_report(report(history=history(count)))
    page = Page(source)
    assert page.text.count("Nothing recorded.") == (2 if count == 0 else 0)
    assert "nan" not in source.lower().replace("nanum", "")
    if count:
        assert f"{count:,} iteration" in page.text
    assert len(source) < 120_000


def test_history_with_gaps_and_infinities() -> None:
    rows = [*history(20), {"iteration": 20, "loss": math.nan}, {"iteration": 21, "loss": math.inf, "lr": 0.1}]
    source = render_report(report(history=rows))
    assert "nan" not in source.replace("nance", "").lower()
    assert "22 iterations, 2 skipped." in Page(source).text


def test_methods_without_a_learning_rate_leave_the_section_out() -> None:
    rows = [{"iteration": i, "loss": 3.0 + i} for i in range(9)]
    page = Page(render_report(report(history=rows, settings={"method": "dm"})))
    assert "learning rate" not in page.text
    assert "skipped" not in page.text
    assert "mean features" in page.text


def test_everything_may_be_empty() -> None:
    page = Page(render_report(ReportData("t", {}, {}, [], [], b"")))
    assert "Not evaluated yet." in page.text
    assert not page.all("details")


def test_difficulty_ranks_classes() -> None:
    page = Page(render_report(report()))
    assert "Easiest by class median: zero (0.2). Hardest: two (1)." in page.text
    assert "Difficulty" not in Page(render_report(report(difficulty=None))).text


def curve(source: str, style: str) -> list[tuple[float, float]]:
    (path,) = [e for e in Page(source).all("path") if (e.get("class") or "").split()[0] == style]
    return [tuple(map(float, point.split())) for point in (path["d"] or "").lstrip("M").split("L")]  # type: ignore[misc]


def draw(lines: list[Line], **options: Any) -> str:
    return line_chart(lines, x_label="x", y_label="y", description="d", **options)


def test_the_curve_has_the_shape_of_the_data() -> None:
    """Equal steps in x, and heights in proportion, the largest value on top."""
    points = curve(draw([Line([0, 1, 2, 3], [1.0, 3.0, 2.0, 1.5], "a")]), "main")
    assert [x for x, _ in points] == pytest.approx([0, 1000 / 3, 2000 / 3, 1000], abs=0.06)
    heights = [y for _, y in points]
    assert min(heights) == heights[1]
    assert (heights[0] - heights[2]) / (heights[0] - heights[1]) == pytest.approx(0.5, abs=1e-3)
    assert (heights[0] - heights[3]) / (heights[0] - heights[1]) == pytest.approx(0.25, abs=2e-3)


def test_ticks_stand_where_their_numbers_are() -> None:
    source = draw([Line([0, 100], [0.0, 1.0], "a")])
    labels = re.findall(r'<span class="x" style="left:([\d.]+)%">([^<]+)<', source)
    assert len(labels) >= 3
    for place, label in labels:
        assert float(place) == pytest.approx(float(label), abs=0.01)


def test_a_spike_does_not_flatten_the_chart() -> None:
    values = [0.5 + 0.01 * (i % 10) for i in range(200)]
    values[50] = 900.0
    source = draw([Line(list(range(200)), values, "a")])
    heights = [y for _, y in curve(source, "main")]
    assert max(heights) - sorted(heights)[1] > 100
    assert "1 point above the range of the chart" in source
    assert "above the range" not in draw([Line([0, 1, 2], [1.0, 2.0, 9.0], "a")])


def test_long_curves_are_thinned_but_keep_their_extremes() -> None:
    values = [math.sin(i / 50) for i in range(20_000)]
    values[7777] = 1.9
    points = curve(draw([Line(list(range(20_000)), values, "a")]), "main")
    assert len(points) <= 1202
    top = min(points, key=lambda point: point[1])
    assert top[0] == pytest.approx(388.9, abs=0.5)
    assert points == sorted(points, key=lambda point: point[0])


def test_marks_and_limit_are_drawn_with_a_legend() -> None:
    lines = [Line(list(range(10)), [0.5 + i / 10 for i in range(10)], "loss")]
    source = draw(lines, marks=[2, 4, 99], marks_label="skipped", limit=1.0, limit_label="threshold")
    (mark,) = [e for e in Page(source).all("path") if e.get("class") == "mark"]
    assert [float(x) for x in re.findall(r"M([\d.]+) ", mark["d"] or "")] == [222.2, 444.4]
    assert re.findall(r'class="key (\w+)">', source) == ["limit", "main", "mark"]
    assert "limit" not in draw(lines, limit=50.0)
    assert "figcaption" not in draw(lines)


def test_one_value_and_constant_curves_have_room() -> None:
    assert 'class="main dot"' in draw([Line([7], [0.25], "a")])
    flat = curve(draw([Line([0, 1, 2], [3.0, 3.0, 3.0], "a")]), "main")
    assert {y for _, y in flat} == {150.0}


def test_histogram_bars_count_the_values() -> None:
    values = [0.0] * 10 + [0.5] * 5 + [1.0] * 20
    source = histogram([*values, math.nan], x_label="x", y_label="y", description="d")
    heights = [float(e["height"] or 0) for e in Page(source).all("rect")]
    assert len(heights) == 3
    assert heights[0] / heights[2] == pytest.approx(0.5, rel=0.01)
    assert heights[1] / heights[2] == pytest.approx(0.25, rel=0.01)
    assert "Nothing recorded" in histogram([math.nan], x_label="x", y_label="y", description="d")
    assert len(Page(histogram([2.0], x_label="x", y_label="y", description="d")).all("rect")) == 1


def test_moving_median_ignores_a_spike() -> None:
    assert moving_median([1.0, 1.0, 50.0, 2.0, 2.0], 3) == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert moving_median([], 5) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3, 3, [-2, 0, 2]), (0, 799, [0, 200, 400, 600]),
     (0.0199, 0.0208, [0.02, 0.0202, 0.0204, 0.0206, 0.0208]), (1e-7, 4e-7, [1e-7, 2e-7, 3e-7, 4e-7])],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected, abs=1e-12)


def test_counts_get_whole_ticks() -> None:
    assert ticks(0, 1.05, whole=True) == [0, 1]


def test_tick_labels_share_their_decimals() -> None:
    assert tick_labels([0.02, 0.0205]) == ["0.0200", "0.0205"]
    assert tick_labels([0.0, 200.0]) == ["0", "200"]
    assert tick_labels([1e6, 2e6]) == ["1e6", "2e6"]
    assert tick_labels([0.0, 2e-7]) == ["0", "2e-7"]
