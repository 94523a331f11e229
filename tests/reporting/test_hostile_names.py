"""Every page has the same elements whatever things are called, and shows each name as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pad_fast import Difficulty, DistilledDataset
from pad_fast.evaluation import AccuracyRow, RobustScore
from pad_fast.reporting import score_page
from pad_fast.reporting.compare import comparison_of
from pad_fast.reporting.film_section import FilmStrip
from pad_fast.reporting.html.gallery import Picture, PictureRow
from pad_fast.reporting.report import Status, render_report
from pad_fast.reporting.sweep_page import NONE, SweepResult
from pad_fast.reporting.use_section import SetShape
from pad_fast.runs.folder import RunFolder
from pad_fast.runs.timing import StageCost
from pad_fast.scoring.formulas import class_order

from ..support.html import HOSTILE, Page
from ..support.small import small_data
from .test_report import difficulty, history, report, small_png

HARMLESS = "harmless"
NAMES = {
    "script": "<script>alert(1)</script>",
    "quotes": """"'` onload="alert(1)" onload='alert(1)' x=""",
    "ampersands": "a & b &amp; &lt;b&gt; &#60; &copy",
    "closes what is open": "--></title></style></svg></table></details><h1>",
    "template": "{{ title }}{% endfor %}{# x #}",
    "unicode": "żółć 猫 🦄 e\u0301 \u2028",
    "right to left": "שלום \u202egnp.exe\u202c \u2067عربي\u2069",
    "undecodable": "b\udcffd \ud800",
    "long": "long" * 5000,
    "everything": HOSTILE,
}


def run_page(name: str) -> str:
    """A report with every section, all of them about things of that name."""
    picture = Picture(small_png(), name, [(name, 0.5)], name, gap=True, moved=name)
    layer = f"layer_loss.{name}"
    data = report(
        title=name,
        settings={"dataset": name, "method": name, "ipc": 1, f"{name} key": name, "list": (name, name),
                  "threshold": 0.5},
        environment={f"{name} key": name, "cpu": name, "cuda": f"yes: {name}", "threads": name},
        accuracy=[AccuracyRow(name.upper(), name, (93.0, 94.0)), AccuracyRow("random real", "other", (60.0,))],
        robust=[RobustScore(name, name, name, (0.5, 0.75))],
        accuracy_history=[(1, (40.0, 42.0)), (2, (50.0, 51.0))],
        chosen=2,
        history=[{**row, layer: 0.5, f"{layer} 2": 0.25} for row in history(12)],
        images=[PictureRow(name, [picture], [Picture(small_png(), name)])],
        film=FilmStrip([name], [PictureRow(name, [Picture(small_png(), name)])]),
        shape=SetShape((1, 1, 8, 8), soft_labels=True),
        image_note=name,
        difficulty=difficulty(method=name, scores={name: [0.1, 0.2, 0.3], f"{name} 2": [0.4, 0.5, 0.6]},
                              pictures=[PictureRow(name, [picture])]),
        stages={name: StageCost(1.0, 2.0, peak_gpu_mib=3.0), "distill": StageCost(4.0, 5.0, resumed=True)},
        status=Status(name, 1, 2),
        notes=[name],
    )  # fmt: skip
    return render_report(data, refresh=5)


def single_network_page(name: str) -> str:
    """A report whose accuracies are of one network, which it names."""
    return render_report(report(accuracy=[AccuracyRow(name, name, (93.0,))], difficulty=None))


def file_name(name: str) -> str:
    """The name as that of a folder, which holds no slash and undecodable bytes rather than any surrogate."""
    return name.replace("/", "∕").replace("\ud800", "\udcff")


def run_folder(path: Path, name: str, other: str) -> RunFolder:
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = DistilledDataset(pixels, None, torch.arange(2), 0.1, None, {}, class_names=(name, f"{name} 2"))
    return RunFolder(
        path=path,
        settings={"method": name, "setting": other, f"{name} key": other},
        environment={},
        history=tuple(history(6)),
        accuracy=(AccuracyRow(name.upper(), name, (93.0, 94.0)), AccuracyRow(f"{name} set", name, (60.0, 62.0))),
        robust=(),
        validation=(),
        chosen=None,
        distilled=images,
        stages={"data": StageCost(1.0, 2.0), "distill": StageCost(3.0, 4.0)},
        finished=True,
        running=False,
        preview=None,
        notes=(name,),
    )


def comparison_page(name: str) -> str:
    """A comparison of runs whose folders, settings, classes and sets are called so."""
    runs = [run_folder(Path(file_name(name), part), name, f"{name} {part}") for part in ("one", "two")]
    return comparison_of(runs).page()


def number_page(name: str) -> str:
    """A comparison of runs that differ in one number, whose setting is called so."""
    runs = [replace(run_folder(Path(f"{n}"), "pad", ""), settings={"method": "pad", name: n}) for n in (1, 2)]
    return comparison_of(runs).page()


def scores_page(name: str) -> str:
    """The page of scores; three classes, the data set, the method and the settings are called so."""
    data = replace(small_data(), name=name, class_names=(name, f"{name} 2", f"{name} 3"))
    scores = torch.rand(len(data.train_labels), generator=torch.Generator().manual_seed(4))
    order = class_order(scores, data.train_labels, data.classes)
    found = Difficulty(scores, order, name, data.fingerprint, settings={name: name})
    described = {**score_page.metadata(found, data), "versions": {name: name}}
    return score_page.render(found, data, described, name)


def sweep_page(name: str) -> str:
    """The page of a sweep; the kinds of what is left out come from the command line's choices."""
    settings = [(prune, mask) for prune in (NONE, ("hardest", 0.2), (name, 0.5)) for mask in (NONE, ("depth", 0.5))]
    pages = {setting: {0: "runs/a/report.html", 1: "runs/b/report.html"} for setting in settings}
    baselines = (AccuracyRow(name, name, (40.0, 41.0)),)
    return SweepResult(name, name, 1, {setting: (50.0, 52.0) for setting in settings}, pages, baselines).page()


PAGES: Mapping[str, tuple[Callable[[str], str], int]] = {
    # How often a name has to be seen at least, in texts and in attributes.
    "run": (run_page, 35),
    "one network": (single_network_page, 3),
    "comparison": (comparison_page, 20),
    "comparison by a number": (number_page, 4),
    "scores": (scores_page, 14),
    "sweep": (sweep_page, 3),
}


def shape(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(attributes)) for tag, attributes in page.elements]


def as_shown(words: str) -> str:
    return " ".join(words.encode("utf-8", "replace").decode("utf-8").split())


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_changes_no_element_and_is_shown_as_it_is(kind: str, name: str) -> None:
    make, least = PAGES[kind]
    source = make(name)
    source.encode("utf-8")
    page, plain = Page(source), Page(make(HARMLESS))
    assert shape(page) == shape(plain)
    for (tag, attributes), (_, expected) in zip(page.elements, plain.elements, strict=True):
        for key in {"class", "style", "id", "href", "http-equiv", "content", "d"} & set(attributes):
            assert attributes[key] == expected[key], (tag, key)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))

    def seen(of: Page, called: str) -> int:
        wanted = {as_shown(called).casefold(), as_shown(file_name(called)).casefold()}
        spoken = [value for _, attributes in of.elements for value in attributes.values() if value]
        return sum(as_shown(part).casefold().count(each) for part in (*of.words, *spoken) for each in wanted)

    assert seen(page, name) == seen(plain, HARMLESS) >= least


def test_the_titles_of_charts_hold_names() -> None:
    """Text within SVG, which screen readers say, is escaped like any other."""
    source = number_page(NAMES["script"])
    (chart,) = [part for part in source.split("<svg")[1:] if "Test accuracy against" in part.split("</title>")[0]]
    assert chart.split("<title>")[1].startswith("Test accuracy against &lt;script&gt;alert(1)&lt;/script&gt;</title>")
