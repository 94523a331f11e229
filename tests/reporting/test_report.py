"""The report: every number it was given is on the page, hostile text is inert, and equal data give equal bytes."""

from __future__ import annotations

import ast
import base64
import dataclasses
import math
import re
import shlex
from html import unescape
from typing import Any

import pytest
import torch

from pad_fast import Config
from pad_fast.errors import InputError
from pad_fast.evaluation import AccuracyRow
from pad_fast.experts import Curriculum, prune
from pad_fast.reporting.contact_sheet import image_grid, png_bytes
from pad_fast.reporting.difficulty_section import DifficultyView, epochs_shown, stage_groups
from pad_fast.reporting.film_section import FilmStrip
from pad_fast.reporting.html.charts import Line, histogram, line_chart, moving_median, tick_labels, ticks
from pad_fast.reporting.html.gallery import Picture, PictureRow
from pad_fast.reporting.present import title_of
from pad_fast.reporting.report import ReportData, Status, render_report
from pad_fast.reporting.use_section import SetShape
from pad_fast.runs.timing import StageCost
from pad_fast.settings.command import command_of

from ..support.html import HOSTILE, Page


def small_png() -> bytes:
    torch.manual_seed(0)
    return png_bytes(image_grid(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), ["a", "b"]))


def history(count: int) -> list[dict[str, float]]:
    return [
        {"iteration": i, "loss": 0.4 + 0.9 / (1 + i / 9) + 0.1 * math.sin(i * 7), "lr": 0.02 + i * 1e-5,
         "skipped": int(i in (3, 5)), "start_epoch": i % 8,
         **({"layer_loss.conv": 0.9 - i / 100, "layer_loss.head": 0.5} if i % 4 == 0 else {})}
        for i in range(count)
    ]  # fmt: skip


def difficulty(**changes: Any) -> DifficultyView:
    view = DifficultyView(
        method="el2n",
        scores={"zero": [i / 20 for i in range(20)], "one": [0.4, 0.5], "two": [0.9, 1.1]},
        curriculum=Curriculum(0.75, 2, 4, 6, 0.1, 0.2),
        epochs=9,
        pictures=[PictureRow("zero", [Picture(small_png(), "zero, number 1", note="el2n 0")])],
    )
    return dataclasses.replace(view, **changes)


def report(**changes: Any) -> ReportData:
    data = ReportData(
        title="Digits, 1 image per class",
        settings={"dataset": "digits", "method": "pad", "ipc": 1, "lr_img": 10.0, "zca": False,
                  "strategy": ("color", "crop"), "batch": None, "threshold": 1.0},
        environment={"pad_fast": "0.1.0", "torch": "2.13.0", "cpu": "Some CPU", "threads": "2",
                     "cuda": "no: this torch was built without CUDA"},
        accuracy=[
            AccuracyRow("random real", "ConvNetD2W32", (66.0, 69.94, 73.88)),
            AccuracyRow("PAD", "ConvNetD2W32", (93.0, 93.61, 94.22)),
            AccuracyRow("full data", "ConvNetD2W32", (99.8,)),
            AccuracyRow("full data", "ResNet18", (99.9, 99.7)),
        ],
        history=history(60),
        images=[PictureRow("zero", [Picture(small_png(), "zero", [("zero", 0.75), ("two", 0.25)])]),
                PictureRow("one", [Picture(small_png(), "one", note="hard label")])],
        difficulty=difficulty(),
        stages={"data": StageCost(1.25, 300.4), "distill": StageCost(80.2, 1234.5, peak_gpu_mib=56.7, resumed=True),
                "evaluate": StageCost(2.0, 310.0, reused=True)},
        training_images=24,
        notes=("Two classes were filled up with real images.",),
    )  # fmt: skip
    return dataclasses.replace(data, **changes)


def test_accuracies_are_rows_best_first_and_ours_is_marked() -> None:
    page = Page(render_report(report()))
    rows = page.rows
    assert rows[1][:3] == ["full data", "ConvNetD2W32", "99.8"]
    assert rows[2][:3] == ["PAD", "ConvNetD2W32", "93.6 ± 0.6"]
    assert rows[3][:3] == ["random real", "ConvNetD2W32", "69.9 ± 3.9"]
    assert [row[-1] for row in rows[1:4]] == ["1", "3", "3"]
    marked = [row.get("class") for row in page.all("tr")[1:4]]
    assert marked == [None, "own", None]
    spots = [path["class"] for path in page.all("path") if "spot" in (path["class"] or "")]
    assert spots == ["spot", "spot own", "spot"]


def test_networks_are_crossed_with_sets() -> None:
    rows = [AccuracyRow(name, model, (10.0 * n, 10.0 * n + 2)) for n, (name, model) in enumerate(
        [("PAD", "MLP"), ("PAD", "LeNet"), ("random real", "LeNet")], 1)]  # fmt: skip
    page = Page(render_report(report(accuracy=rows)))
    assert ["Network", "PAD", "random real"] in page.rows
    assert ["MLP", "11.0 ± 1.4", "–"] in page.rows
    assert ["LeNet", "21.0 ± 1.4", "31.0 ± 1.4"] in page.rows
    assert "evaluated on MLP only" in Page(render_report(report(accuracy=rows[:1]))).text


def test_one_network_has_no_spread() -> None:
    page = Page(render_report(report(accuracy=[AccuracyRow("distilled", "ConvNet", (50.0,))])))
    assert page.rows[1][2] == "50.0"
    assert "±" not in page.text


def test_an_unknown_mean_is_not_a_number() -> None:
    page = Page(render_report(report(accuracy=[AccuracyRow("full", "ConvNet", (math.nan, 3.0))])))
    assert page.rows[1][2] == "n/a"


def test_dots_and_errors_stand_on_the_axis_of_their_heading() -> None:
    """Places on the axis, which is zoomed to the rows, taken back to percent with its ticks."""
    source = render_report(report())
    table = source[source.index('class="accuracy"') : source.index("</table>", source.index('class="accuracy"'))]
    ticks = [(float(a), float(b)) for a, b in re.findall(r'class="x" style="left:([\d.]+)%">([\d.]+)<', table)]
    (low, low_value), (high, high_value) = ticks[0], ticks[-1]
    assert low_value >= 60 and high_value == 100, "not from 0 on"

    def percent(place: str) -> float:
        return low_value + (float(place) - low) / (high - low) * (high_value - low_value)

    means = [percent(place) for place in re.findall(r'class="spot[^"]*" d="M([\d.]+) 8h0"', table)]
    assert means == pytest.approx([99.8, 93.61, 69.94], abs=0.02)
    whiskers = re.findall(r'class="whisker" d="M([\d.]+) 8H([\d.]+)"', table)
    assert [percent(a) for a, _ in whiskers] == pytest.approx([93.0, 66.0], abs=0.02)
    assert [percent(b) for _, b in whiskers] == pytest.approx([94.22, 73.88], abs=0.02)
    grid = re.findall(r'class="grid" d="M([\d.]+) 0V16"', table)
    assert [float(place) for place in grid] == [place for place, _ in ticks] * 3


def test_the_numbers_that_matter_stand_on_top() -> None:
    page = Page(render_report(report()))
    tiles = page.text[: page.text.index("Test accuracy Trained on")]
    assert "test accuracy, ConvNetD2W32 93.6 ± 0.6 %" in tiles
    assert "points above random real images +23.7 ± 4.0" in tiles
    assert "images per class 1 8.3 % of 24" in tiles
    assert "time, all stages 1 min 23 s" in tiles
    assert "of the full data's accuracy 93.8 %" in tiles
    several = [dataclasses.replace(row, accuracies=(99.0, 100.0, 100.4)) if row.networks == 1 else row
               for row in report().accuracy]  # fmt: skip
    # 93.61 of 99.8, with relative deviations of 0.61 / 93.61 and 0.721 / 99.8.
    assert "of the full data's accuracy 93.8 ± 0.9 %" in Page(render_report(report(accuracy=several))).text
    # Another network on the full set is nothing to compare with.
    other = report(accuracy=[row for row in report().accuracy if row.accuracies != (99.8,)])
    assert "full data's" not in Page(render_report(other)).text


def test_settings_versions_notes_and_title_are_shown() -> None:
    page = Page(render_report(report()))
    pairs = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert pairs == {
        "dataset": "digits", "method": "pad", "ipc": "1", "lr_img": "10", "zca": "no", "strategy": "color, crop",
        "batch": "none", "threshold": "1", "pad_fast": "0.1.0", "torch": "2.13.0", "cpu": "Some CPU", "threads": "2",
        "cuda": "no: this torch was built without CUDA",
    }  # fmt: skip
    assert "Two classes were filled up with real images." in page.text
    assert page.text.count("Digits, 1 image per class") == 2
    assert "60 iterations, 2 skipped." in page.text
    assert "From 0.02 to 0.02059." in page.text


def test_costs_are_rows_with_their_remarks() -> None:
    page = Page(render_report(report()))
    rows = page.rows[page.rows.index(["Stage", "Time", "Peak memory, MiB", "Peak GPU memory, MiB", ""]) :]
    assert rows[1:5] == [
        ["data and normalisation", "1.2 s", "300", "", ""],
        ["distillation", "1 min 20 s", "1,234", "57", "continued; of the last part"],
        ["evaluation", "2.0 s", "310", "", "from the cache"],
        ["all", "1 min 23 s", "", "", ""],
    ]
    assert "On Some CPU; threads: 2." in page.text
    running = Page(render_report(report(stages={"data": StageCost()})))
    assert ["data and normalisation", "running", "", ""] in running.rows


def test_every_image_is_embedded_and_says_what_it_is() -> None:
    data = report()
    images = Page(render_report(data)).all("img")
    assert len(images) == 3
    for image in images:
        prefix, encoded = (image["src"] or "").split(",")
        assert prefix == "data:image/png;base64" and base64.b64decode(encoded) == small_png()
    cells = [e for e in Page(render_report(data)).all("span") if e.get("class") == "cell"]
    assert [cell["aria-label"] for cell in cells] == [
        "zero, zero 75%, two 25%",
        "one, hard label",
        "zero, number 1, el2n 0",
    ]
    assert all(cell["tabindex"] == "0" for cell in cells), "a card must open without a mouse"
    bars = [e["style"] for e in Page(render_report(data)).all("i") if e.get("style")]
    assert bars == ["--p:75.0%", "--p:25.0%"]


def test_no_images_say_so_and_foreign_bytes_are_refused() -> None:
    page = Page(render_report(report(images=(), difficulty=None)))
    assert not page.all("img") and "the first checkpoint brings them" in page.text
    with pytest.raises(InputError, match="not a PNG"):
        render_report(report(images=[PictureRow("a", [Picture(b"GIF89a" + bytes(40), "x")])]))


def test_hostile_text_is_inert_everywhere() -> None:
    """Class names, settings, notes and titles come from folder names and files: they must stay text."""
    page = Page(
        render_report(
            report(
                title=HOSTILE,
                settings={"dataset": HOSTILE, HOSTILE: HOSTILE},
                environment={HOSTILE: HOSTILE, "cpu": HOSTILE},
                accuracy=[AccuracyRow(HOSTILE, HOSTILE, (1.0, 2.0)), AccuracyRow(HOSTILE, "b", (1.0,))],
                history=[{"iteration": i, "loss": 1.0, f"layer_loss.{HOSTILE}": 0.5} for i in range(3)],
                images=[PictureRow(HOSTILE, [Picture(small_png(), HOSTILE, [(HOSTILE, 0.5)], HOSTILE)])],
                difficulty=difficulty(method=HOSTILE, scores={HOSTILE: [0.1, 0.2], "b": [0.3], "c\udcff": [0.4]},
                                      pictures=[PictureRow(HOSTILE, [Picture(small_png(), HOSTILE)])]),
                stages={HOSTILE: StageCost(1.0, 2.0)},
                status=Status(HOSTILE, 1, 2),
                image_note=HOSTILE,
                notes=[HOSTILE],
            )
        )
    )  # fmt: skip
    assert not page.all("script")
    assert len(page.all("img")) == 2
    assert page.text.count('<script>alert("x")</script>') >= 25
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_an_undecodable_name_can_be_written() -> None:
    render_report(report(title="folder \udcff")).encode("utf-8")


def test_nothing_is_loaded_from_elsewhere() -> None:
    source = render_report(report())
    assert "base64," in source
    markup = re.sub(r'"data:image/png;base64,[^"]*"', "", source)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<iframe", markup)
    for _, attributes in Page(source).elements:
        assert not {"srcset", "action"} & set(attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "data:,") == "data:,"


def test_both_themes_phones_and_paper_have_rules() -> None:
    source = render_report(report())
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    assert "@media (max-width" in source
    # On paper headings stay with what they are of, nothing that is whole is cut, and what needs a pointer is left out.
    paper = source[source.index("@media print") : source.index("</style>")]
    assert re.search(r"h1, h2, h3, \.y-label \{ break-after: avoid; \}", paper)
    assert re.search(r"tr, figure,[^{]* \{ break-inside: avoid; \}", paper)
    assert re.search(r"\.cell \.card, \.hover,[^{]*\{ display: none !important; \}", paper)
    assert any(meta.get("name") == "viewport" for meta in Page(source).all("meta"))


def test_colours_of_both_themes_can_be_read() -> None:
    """Text has a contrast of 4.5 on its paper (WCAG AA), also in the hottest cell; curves one of 3 but the quiet."""
    themes = render_report(report()).split("prefers-color-scheme")[:2]
    for colours in (dict(re.findall(r"--(\w+): (#[0-9a-f]+);", theme)) for theme in themes):
        assert len(colours) > 20
        assert contrast(colours["ink"], colours["hot"]) > 4.5
        for name, value in colours.items():
            needed = 4.5 if name in ("ink", "soft", "warn", "accent") else 3 if re.fullmatch(r"[cr]\d", name) else 0
            assert contrast(value, colours["paper"]) >= needed, (name, value)


def contrast(first: str, second: str) -> float:
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_values_are_read_without_a_script() -> None:
    """A group of choices for each chart: one stop of the tabulator, and the values of all curves at each place."""
    source = draw([Line([0, 1, 2, 3], [1.0, 3.0, 2.0, 1.5], "a"), Line([0, 3], [5.0, 6.0], "b")])
    page = Page(source)
    choices = page.all("input")
    assert [choice["type"] for choice in choices] == ["radio"] * 4 and len({choice["name"] for choice in choices}) == 1
    said = re.findall(r"<b>([^<]*)</b>((?:<i>[^<]*</i>)*)", source)
    assert [(at, re.findall("<i>([^<]*)", values)) for at, values in said] == [
        ("x 0", ["a: 1", "b: 5"]), ("x 1", ["a: 3"]), ("x 2", ["a: 2"]), ("x 3", ["a: 1.5", "b: 6"])
    ]  # fmt: skip
    columns = [
        tuple(map(float, ends)) for ends in re.findall(r'<label style="left:([\d.]+)%;width:([\d.]+)%">', source)
    ]
    assert columns[0][0] == 0 and columns[-1][0] + columns[-1][1] == pytest.approx(100, abs=0.02)
    for (left, width), (next_left, _), x in zip(columns, columns[1:], range(3), strict=False):
        assert left + width == pytest.approx(next_left, abs=0.02) and left <= 100 * x / 3 <= left + width
    long = draw([Line(list(range(5000)), [0.5 + i / 5000 for i in range(5000)], "a")])
    assert 20 <= len(Page(long).all("input")) <= 24 and "<b>x 4,999</b><i>1.5</i>" in long
    names = [choice["name"] for choice in Page(render_report(report())).all("input")]
    assert len(set(names)) == 5, "each chart is a group of its own"


def test_bars_say_what_they_count() -> None:
    source = histogram([0.0] * 10 + [0.5] * 5 + [1.0] * 20, x_label="x", y_label="y", description="d")
    assert re.findall(r"<b>([^<]*)</b><i>([^<]*)</i>", source)[::5] == [("0 to 0.167", "10"), ("0.833 to 1", "20")]
    stages = source = render_report(report())
    assert "<i>always shown: " in stages


def test_starts_stand_above_results_and_winners_below_them() -> None:
    start, end = Picture(small_png(), "zero, at the start"), Picture(small_png(), "zero", [("two", 0.6)], moved="two")
    source = render_report(report(images=[PictureRow("zero", [end], [start])], difficulty=None))
    page = Page(source)
    assert [image["alt"] for image in page.all("img")] == ["zero, at the start", ""]
    assert '<small class="moved">two</small>' in source
    (cell,) = [each["aria-label"] for each in page.all("span") if each.get("class") == "cell"]
    assert cell == "zero, two 60%, its label now says two"
    assert "The label of 1 of 1 images says another class most" in page.text
    assert "what it began with, then the result" in page.text
    assert "what it began with, then the result" not in Page(render_report(report())).text


def test_the_page_begins_with_the_images() -> None:
    film = FilmStrip(["start", "8", "result"], [PictureRow("a", [Picture(small_png(), "a")] * 3)])
    source = render_report(report(film=film, shape=SetShape((2, 1, 8, 8), soft_labels=True)))
    headings = re.findall("<h2>([^<]*)</h2>", source)
    assert headings[:4] == ["Synthetic images", "From start to end", "Test accuracy", "Use this set"]
    assert headings[-3:] == ["Settings", "Versions and machine", "Not on this page"]


def test_the_box_has_lines_that_load_the_set_and_the_command_that_makes_it_again() -> None:
    config = Config(dataset="imagefolder:/a b/it's", ipc=3, seed=7, iterations=50, soft_labels=False, mask="none")
    source = render_report(report(shape=SetShape((30, 3, 32, 32), soft_labels=False), settings=config.describe()))
    box = source[source.index('id="use"') : source.index("</section>", source.index('id="use"'))]
    python, command = (unescape(lines) for lines in re.findall("<code>([^<]*)</code>", box))
    ast.parse(python)
    assert 'pad_fast.load("RUN")' in python and "30 normalised images 3x32x32, classes" in python
    assert "Make it again: seed 7" in box and all(len(line) < 130 for line in command.splitlines())
    # As a shell reads it: a backslash before the end of a line takes the end away.
    words = shlex.split(command.replace("\\\n", ""))
    assert words == [*command_of(config.describe()), "--out", "AGAIN"]
    nameless = {**config.describe(), "dataset": "tensors"}
    assert "Make it again" not in render_report(report(shape=SetShape((30, 3, 32, 32), True), settings=nameless))
    assert 'id="use"' not in render_report(report(settings=config.describe()))


def test_a_headline_names_no_folder_of_somebodys_machine() -> None:
    settings = {**report().settings, "dataset": "imagefolder:/home/somebody/my birds"}
    page = Page(render_report(report(title=title_of(settings), settings=settings)))
    assert "PAD on my birds, 1 image per class" in page.text
    top = page.text[: page.text.index("Synthetic images")]
    assert "dataset my birds" in top and "/home" not in top


def test_equal_data_give_equal_bytes_without_a_date() -> None:
    assert render_report(report()) == render_report(report())
    assert not re.search(r"\b(19|20)\d\d-\d\d|\d\d:\d\d", Page(render_report(report())).text)


def test_only_a_watched_page_loads_itself_again() -> None:
    assert not [meta for meta in Page(render_report(report())).all("meta") if "http-equiv" in meta]
    (again,) = [meta for meta in Page(render_report(report(), refresh=7)).all("meta") if "http-equiv" in meta]
    assert again == {"http-equiv": "refresh", "content": "7"}


def test_an_unfinished_run_says_how_far_it_is() -> None:
    page = Page(render_report(report(status=Status("distill", 60, 800), accuracy=())))
    assert (
        "Not finished: distillation, iteration 60 of 800" in page.text
        and "Test accuracy: not evaluated yet." in page.text
    )
    (bar,) = page.all("progress")
    assert (bar["value"], bar["max"]) == ("60", "800")
    assert "Not finished" not in Page(render_report(report())).text
    left = Page(render_report(report(status=Status("distill", 60, 800, stopped=True), accuracy=())))
    assert "Stopped before its end: distillation, iteration 60 of 800" in left.text and "Not finished" not in left.text


@pytest.mark.parametrize("count", [0, 1, 2, 5, 3000])
def test_any_length_of_history(count: int) -> None:
    source = render_report(report(history=history(count)))
    page = Page(source)
    # Loss, learning rate and layers say in the footnote that there is nothing.
    assert page.text.count("nothing recorded.") == (3 if count == 0 else 0)
    assert "Nothing recorded." not in page.text
    assert not re.search(r"\bnan\b", source, re.IGNORECASE)
    if count:
        assert f"{count:,} iteration" in page.text
    assert len(source) < 150_000


def test_history_with_gaps_and_infinities() -> None:
    rows = [*history(20), {"iteration": 20, "loss": math.nan}, {"iteration": 21, "loss": math.inf, "lr": 0.1}]
    source = render_report(report(history=rows))
    assert not re.search(r"\bnan\b", source, re.IGNORECASE)
    assert "22 iterations, 2 skipped." in Page(source).text


def test_methods_without_a_learning_rate_leave_the_section_out() -> None:
    rows = [{"iteration": i, "loss": 3.0 + i} for i in range(9)]
    page = Page(render_report(report(history=rows, settings={"method": "dm"})))
    assert "learning rate" not in page.text and "by layer" not in page.text
    assert "skipped" not in page.text
    assert "mean features" in page.text


def test_layers_are_curves_shallow_to_deep() -> None:
    source = render_report(report(history=history(12)))
    colours = [(e.get("class") or "") for e in Page(source).all("path") if "series" in (e.get("class") or "")]
    assert colours == ["series r0", "series r7"]
    text = Page(source).text
    legend = source[source.index('id="layers"') : source.index("</figcaption>", source.index('id="layers"'))]
    assert re.findall(r'class="key series r\d">(\w+)<', legend) == ["conv", "head"]
    assert "lowest 0.5 in head, highest 0.82 in conv" in text
    off = report(history=[{"iteration": 0, "loss": 1.0}], settings={"layer_loss_every": 0})
    assert "Matching loss by layer: switched off (layer_loss_every 0)." in Page(render_report(off)).text


def test_accuracy_over_time_has_error_bars() -> None:
    points = [(0, (50.0, 54.0)), (10, (80.0, 84.0)), (20, (81.0, 81.0))]
    source = render_report(report(accuracy_history=points, chosen=10))
    page = Page(source)
    assert "The result is the images after iteration 10." in page.text
    (bars,) = [e["d"] for e in page.all("path") if e.get("class") == "spread"]
    assert (bars or "").count("M") == 2, "two networks that agree have no error bar"
    assert "Accuracy over the iterations: networks are tested once" in Page(render_report(report())).text


def test_everything_may_be_empty() -> None:
    source = render_report(ReportData("t"))
    page = Page(source)
    assert re.findall("<h2>([^<]*)</h2>", source) == ["Not on this page"]
    assert len(page.all("li")) == 7 and "Test accuracy: not evaluated yet." in page.text
    assert not page.all("details")


def test_difficulty_ranks_classes_and_draws_the_stages() -> None:
    page = Page(render_report(report()))
    assert "Easiest by class median: one (0.45). Hardest: two (1)." in page.text
    assert "Difficulty" not in Page(render_report(report(difficulty=None))).text
    for words in ("shown up to epoch 4", "shown up to epoch 6", "always shown", "added in epochs 1 to 2"):
        assert words in page.text
    assert "What experts see" in page.text
    plain = Page(render_report(report(difficulty=difficulty(curriculum=Curriculum.none()))))
    assert "What experts see" not in plain.text and "always shown" not in plain.text


@pytest.mark.parametrize("rule", ["none", "hardest:0.25", "easiest:0.1"])
def test_the_stages_are_those_of_the_curriculum(rule: str) -> None:
    """Every image stands in the group of the epochs in which `Curriculum` really shows it."""
    view = difficulty(scores={"a": [float(i) for i in range(20)]}, prune=rule)
    first, last = epochs_shown(view, 20)
    kept = prune([torch.arange(20)], rule)
    for rank in range(20):
        seen = [epoch for epoch in range(9) if rank in view.curriculum.indices(epoch, kept).tolist()]
        assert (first[rank], last[rank]) == ((seen[0], seen[-1]) if seen else (-1, -1))
    groups = {group.label: sorted(group.values) for group in stage_groups(view)}
    assert sum(map(len, groups.values())) == 20
    if rule == "none":
        assert groups["shown up to epoch 4"] == [0, 1] and groups["shown up to epoch 6"] == [2, 3]
        assert groups["added in epochs 1 to 2"] == [15, 16, 17, 18, 19]
    else:
        assert len(groups["never shown"]) == {"hardest:0.25": 5, "easiest:0.1": 2}[rule]


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
