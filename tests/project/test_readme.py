"""The README's commands and examples, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from ..support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_it_is_short():
    assert len(README.splitlines()) < 120


def test_make_targets():
    (commands,) = [block for block in blocks("bash") if "make demo" in block]
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"demo": "pad-fast distill", "test": "pytest"}[words[1]] in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("index", range(2))
def test_python_examples(tmp_path, index):
    code = blocks("python")[index]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    if index == 0:
        rows = {name: float(mean) for name, mean, _ in (line.rsplit(" ", 2) for line in done.stdout.splitlines())}
        assert list(rows) == ["random real", "easiest real", "k-means centres", "PAD", "full data"]
        # The defaults on a seed they were not chosen on; the README's table has the numbers.
        assert rows["PAD"] >= 91 and rows["PAD"] >= rows["random real"] + 18, rows
        assert (tmp_path / "runs" / "first" / "report.html").exists()


@pytest.mark.slow
def test_commands(tmp_path):
    (commands,) = [block for block in blocks("bash") if "pad-fast distill" in block]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for line in commands.splitlines():
        words = shlex.split(line)
        assert words[0] == "pad-fast"
        command = [sys.executable, "-m", "pad_fast.cli", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_command_for_images_of_ones_own(tmp_path):
    """On discs, squares and triangles of any colour, at any place: PAD is better than as many random images."""
    import numpy as np
    from PIL import Image, ImageDraw

    draws = np.random.default_rng(0)
    for split, count in (("train", 55), ("test", 40)):
        for label in ("disc", "square", "triangle"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                colours = [tuple(draws.integers(0, 256, 3).tolist()) for _ in range(2)]
                image = Image.new("RGB", (32, 32), colours[0])
                r = int(draws.integers(6, 12))
                x, y = draws.integers(r, 32 - r, 2).tolist()
                pen, box = ImageDraw.Draw(image), [x - r, y - r, x + r, y + r]
                if label == "disc":
                    pen.ellipse(box, fill=colours[1])
                elif label == "square":
                    pen.rectangle(box, fill=colours[1])
                else:
                    pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colours[1])
                image.save(tmp_path / "data" / split / label / f"{index}.png")
    (block,) = [block for block in blocks("text") if "imagefolder:DIR" in block]
    words = shlex.split(block.replace("\\\n", " ").replace("imagefolder:DIR", f"imagefolder:{tmp_path / 'data'}"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pad_fast.cli", *words[1:], "--out", "run"],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]}
    assert np.mean(rows["PAD"]["accuracies"]) > np.mean(rows["random real"]["accuracies"]), done.stdout


def test_links_and_names_exist():
    import pad_fast

    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
    for name in set(re.findall(r"pad_fast\.([A-Za-z_]+)\(", README)):
        assert hasattr(pad_fast, name), name
