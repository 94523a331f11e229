"""The files of a scored data set: what is in them, what they are called, and that a page shows the right images."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
import torch

from pad_fast import Difficulty, load_dataset
from pad_fast.errors import StoreError
from pad_fast.reporting import score_page
from pad_fast.reporting.score_page import ScoreFiles
from pad_fast.scoring.formulas import class_order

from ..support.html import Page
from ..support.small import SIZES, small_data


def difficulty_of(data) -> Difficulty:
    scores = torch.rand(len(data.train_labels), generator=torch.Generator().manual_seed(4))
    order = class_order(scores, data.train_labels, data.classes)
    settings = {"model": "ConvNet<1>", "networks": 2}
    return Difficulty(scores, order, "el2n", data.fingerprint, scores / 9, scores.round() * 2, settings)


def even(data):
    """The same data with classes of nine images each."""
    kept = torch.cat([data.images_of_class(label)[:9] for label in range(data.classes)])
    return replace(data, train_images=data.train_images[kept], train_labels=data.train_labels[kept])


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
    html = score_page.render(difficulty, data, score_page.metadata(difficulty, data), "some birds")
    page = Page(html)
    assert "Difficulty of some birds" in page.text
    assert len(page.all("h3")) == 3 and len(page.all("svg")) == 4
    assert "ConvNet&lt;1&gt;" in html and "script" not in html
    # The same axis under all: every chart has the same ticks.
    charts = [piece.split("</figure>")[0] for piece in html.split('<figure class="chart"')[1:]]
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


@pytest.mark.parametrize("named", [True, False])
def test_every_image_is_a_line_of_the_table_and_named_where_it_is_a_file(named, tmp_path):
    data = replace(small_data(), class_names=("a, b", 'say "c"', "żółć"))
    if named:
        data = replace(
            data, train_files=tuple(f"train/x/photo {n}, old\udcff.png" for n in range(len(data.train_labels)))
        )
    difficulty = difficulty_of(data)
    written = ScoreFiles.at(tmp_path, data)
    written.write(difficulty, data)
    rows = list(csv.DictReader(io.StringIO(written.rows.read_bytes().decode("utf-8"), newline="")))
    assert [int(row["index"]) for row in rows] == torch.cat(list(difficulty.order)).tolist()
    for row in rows:
        index, label = int(row["index"]), int(data.train_labels[int(row["index"])])
        assert row["file"] == (f"train/x/photo {index}, old?.png" if named else "")
        assert (int(row["label"]), row["class"]) == (label, ("a, b", 'say "c"', "żółć")[label])
        assert int(difficulty.order[label][int(row["rank"]) - 1]) == index
        assert float(row["score"]) == pytest.approx(float(difficulty.scores[index]), rel=1e-6)
        assert float(row["std_over_networks"]) == pytest.approx(float(difficulty.variance[index]) ** 0.5, rel=1e-6)
        assert float(row["forgetting"]) == float(difficulty.forgetting[index])
    text = Page(written.page.read_text(encoding="utf-8")).text
    first = int(difficulty.order[0][0])
    called = f"train/x/photo {first}, old?.png" if named else f"index {first}"
    assert f"el2n {float(difficulty.scores[first]):.4g}, {called}" in text
    assert f"{called} ({float(difficulty.scores[first]):.4g})" in text
    assert ("Easiest and hardest, by file" in text) == named


def test_the_files_of_a_folder_follow_their_images(tmp_path):
    """Through the split that sets a fifth aside, and the part that is held out: every name leads to its image."""
    from PIL import Image

    for label, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for n in range(10):
            Image.new("L", (8, 8), 100 * label + 5 * n).save(tmp_path / name / f"{n}.png")
    data = load_dataset(f"imagefolder:{tmp_path}")
    rest, _ = data.hold_out(0.25, seed=1)
    for part, count in ((data, 16), (rest, 12)):
        assert len(part.train_files) == count == len(part.train_images)
        for file, image in zip(part.train_files, part.train_images, strict=True):
            assert Image.open(tmp_path / file).getpixel((0, 0)) == round(float(image[0, 0, 0]) * 255)
