"""The README's commands and examples, run as they stand."""

from __future__ import annotations

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
def test_the_cifar_command_on_a_folder_of_images(tmp_path):
    """The command of the README, with a small image folder in place of CIFAR-10."""
    import torch
    from PIL import Image

    draws = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog", "emu"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / "data" / split / label / f"{index}.png")
    (block,) = [block for block in blocks("text") if "imagefolder:DIR" in block]
    words = shlex.split(block.replace("\\\n", " ").replace("imagefolder:DIR", f"imagefolder:{tmp_path / 'data'}"))
    command = [sys.executable, "-m", "pad_fast.cli", *words[1:], "--threshold", "none", "--lr-lr", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "PAD" in done.stdout


def test_links_and_names_exist():
    import pad_fast

    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
    for name in set(re.findall(r"pad_fast\.([A-Za-z_]+)\(", README)):
        assert hasattr(pad_fast, name), name
