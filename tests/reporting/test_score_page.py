"""The files of a scored data set: what is in them, what they are called, and that a page shows the right images."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import pytest
import torch

from pad_fast import Difficulty
from pad_fast.errors import StoreError
from pad_fast.reporting import score_page
from pad_fast.reporting.score_page import ScoreFiles
from pad_fast.scoring.formulas import class_order

from ..support.small import SIZES, small_data


def difficulty_of(data) -> Difficulty:
    scores = torch.rand(len(data.train_labels), generator=torch.Generator().manual_seed(4))
    order = class_order(scores, data.train_labels, data.classes)
    settings = {"model": "ConvNet<1>", "networks": 2}
    return Difficulty(scores, order, "el2n", data.fingerprint, scores / 9, scores.round() * 2, settings)


def even(data):
    """The same data with classes of nine images each."""
    from dataclasses import replace

    kept = torch.cat([data.images_of_class(label)[:9] for label in range(data.classes)])
    return replace(data, train_images=data.train_images[kept], train_labels=data.train_labels[kept])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "link", "img", "rect", "path", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_names_follow_a_folder_or_a_file(tmp_path):
    data = small_data()
    folder = ScoreFiles.at(tmp_path / "run", data)
    assert folder.main == folder.scores == tmp_path / "run" / "difficulty.safetensors" and folder.table is None
    file = ScoreFiles.at(tmp_path / "a.b.safetensors", data)
    assert file.main == file.scores == tmp_path / "a.b.safetensors" and file.page == tmp_path / "a.b.html"
    table = ScoreFiles.at(tmp_path / "x.pt", even(data))
    assert table.main == table.table == tmp_path / "x.pt" and table.scores == tmp_path / "x.safetensors"
    with pytest.raises(StoreError, match=r"rectangular, but class sizes of \S+ are \[9, 13, 16\]; name a .safetensors"):
        ScoreFiles.at(tmp_path / "x.pt", data)


def test_everything_is_written_and_reads_back(tmp_path):
    data = even(small_data())
    difficulty = difficulty_of(data)
    written = ScoreFiles.at(tmp_path, data)
    written.write(difficulty, data)
    assert torch.equal(Difficulty.load(written.scores).scores, difficulty.scores)
    table = torch.load(written.table, weights_only=True)
    assert torch.equal(table, torch.stack(difficulty.order))
    described = json.loads(written.metadata.read_text())
    assert described["settings"]["networks"] == 2 and described["fingerprint"] == data.fingerprint
    assert described["std_over_networks"] == pytest.approx(float((difficulty.scores / 9).mean().sqrt()), rel=1e-5)
    for label, row in enumerate(described["classes"]):
        scores = difficulty.scores[difficulty.order[label]]
        assert row["images"] == 9 and row["mean"] == pytest.approx(float(scores.mean()))
        assert row["easiest"][0] == int(difficulty.order[label][0]) and row["hardest"][0] == int(
            difficulty.order[label][-1]
        )
        assert row["quartiles"] == sorted(row["quartiles"]) and row["quartiles"][1] == pytest.approx(
            float(scores.median())
        )
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written.write(difficulty, data)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_page_shows_every_class_on_one_scale(tmp_path):
    data = small_data()
    difficulty = difficulty_of(data)
    html = score_page.render(difficulty, data, score_page.metadata(difficulty, data), b"")
    tags = Tags()
    tags.feed(html)
    assert not tags.open and tags.count["h3"] == 3 and tags.count["svg"] == 4
    assert "ConvNet&lt;1&gt;" in html and "script" not in html
    # The same axis under all: every chart has the same ticks.
    charts = [piece.split("</figure>")[0] for piece in html.split("<figure")[1:]]
    ticks = [[part.split("<")[0] for part in chart.split('class="x"')[1:]] for chart in charts]
    assert ticks[0] and all(each == ticks[0] for each in ticks)


def test_the_sheet_shows_both_ends_of_each_class():
    from PIL import Image

    data = small_data()
    # Brightness says the rank: the easiest image is black, the hardest white.
    for label in range(3):
        rows = data.images_of_class(label)
        data.train_images[rows] = torch.linspace(0, 1, len(rows))[:, None, None, None].expand(-1, 1, 8, 8)
    scores = data.train_images.mean((1, 2, 3))
    difficulty = Difficulty(scores, class_order(scores, data.train_labels, 3), "el2n", data.fingerprint)
    picture = Image.open(io.BytesIO(score_page.contact_sheet(difficulty, data))).convert("L")
    shown = set(picture.tobytes())
    for size in SIZES:
        ranks = torch.linspace(0, 1, size)
        expected = {round(float(rank) * 255) for rank in score_page.ends(ranks)}
        assert expected <= shown
        # Only the class of 9 is shown whole; the middle of the others is left out.
        assert len(expected) == min(size, 10)
