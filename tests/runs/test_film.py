"""The film of a run: the images at the start and at a few checkpoints, whatever interrupts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pad_fast
from pad_fast.data import MeanStd
from pad_fast.distillation.state import State
from pad_fast.errors import StoreError
from pad_fast.runs.film import FILM, read_film, shown_images, write_frame
from pad_fast.runs.folder import read_run

from ..support.settings import SMALL
from ..support.small import QUIET

PLAIN = MeanStd(torch.tensor([0.5]), torch.tensor([0.25]))
LABELS = torch.tensor([2, 0, 2, 0, 0])


def images_after(iteration: int) -> torch.Tensor:
    """Normalised images whose pixels are another grey for every image and iteration."""
    greys = (torch.arange(5.0) * 10 + iteration % 50) / 255
    return PLAIN.apply(greys[:, None, None, None].expand(-1, 1, 4, 4))


def filmed(folder: Path, iterations: list[int], every: int = 10) -> None:
    for iteration in iterations:
        write_frame(folder, iteration, images_after(iteration), LABELS, PLAIN, every)


def test_the_start_of_all_and_frames_of_the_first_of_each_class(tmp_path: Path) -> None:
    filmed(tmp_path, [0, 10, 20])
    film = read_film(tmp_path)
    assert film.indices.tolist() == [1, 3, 4, 0, 2] and film.followed.tolist() == [1, 0]
    assert film.start[:, 0, 0, 0].tolist() == [10, 30, 40, 0, 20]
    assert film.iterations == (0, 10, 20)
    assert film.frames[:, :, 0, 0, 0].tolist() == [[10, 0], [20, 10], [30, 20]]
    assert film.frames.shape[2:] == (1, 4, 4)


@pytest.mark.parametrize("last", [8, 9, 16, 17, 40, 100])
def test_frames_are_few_and_evenly_far_apart(tmp_path: Path, last: int) -> None:
    filmed(tmp_path, [10 * number for number in range(last + 1)])
    taken = read_film(tmp_path).iterations
    assert len(taken) <= 7 and taken[-1] > 5 * last
    assert len({b - a for a, b in zip(taken, taken[1:], strict=False)}) == 1


@pytest.mark.parametrize("killed", range(1, 25))
def test_an_interrupted_run_has_the_same_film(tmp_path: Path, killed: int) -> None:
    """A kill loses the frame of the last checkpoint, which is taken again where the run goes on."""
    every = [10 * number for number in range(26)]
    filmed(tmp_path, every)
    whole = (tmp_path / FILM).read_bytes()
    filmed(tmp_path, every[:killed])
    filmed(tmp_path, every[killed:])
    assert (tmp_path / FILM).read_bytes() == whole
    filmed(tmp_path, every[killed - 1 :])  # one that lost iterations
    assert (tmp_path / FILM).read_bytes() == whole


def test_large_images_are_made_smaller_and_much_is_left_out(tmp_path: Path) -> None:
    labels = torch.arange(150).repeat_interleave(3)
    images = PLAIN.apply(torch.rand(450, 1, 80, 80, generator=torch.Generator().manual_seed(0)))
    write_frame(tmp_path, 0, images, labels, PLAIN, 1)
    film = read_film(tmp_path)
    assert film.start.shape == (300, 1, 64, 64) and film.frames.shape == (1, 10, 1, 32, 32)
    assert [len(chosen) for _, chosen in shown_images(labels)] == [3] * 100
    assert [len(chosen) for _, chosen in shown_images(torch.arange(100).repeat_interleave(9))] == [4] * 100


def test_without_a_beginning_there_is_no_film(tmp_path: Path) -> None:
    filmed(tmp_path, [10, 20])
    assert not (tmp_path / FILM).exists()
    (tmp_path / FILM).write_bytes(b"something else")
    filmed(tmp_path, [30])
    with pytest.raises(StoreError, match="film"):
        read_film(tmp_path)
    filmed(tmp_path, [0])
    assert read_film(tmp_path).iterations == (0,)


@pytest.mark.parametrize("method", ["pad", "dm"])
def test_a_run_is_filmed_and_goes_on_filming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    settings = {**SMALL, "method": method, "iterations": 12, "checkpoint_every": 2, "eval_baselines": False}
    settings = {name: value for name, value in settings.items() if method == "pad" or name != "threshold"}
    whole = pad_fast.distill("digits", out=tmp_path / "whole", progress=QUIET, **settings)
    film = read_run(tmp_path / "whole").film
    assert film is not None and film.iterations == tuple(range(0, 13, 2)) and len(film.iterations) == 7
    last = (whole.pixels()[film.followed].clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(film.frames[-1], last) and not torch.equal(film.frames[0], last)
    assert torch.equal(film.start[:: len(film.start) // 10], film.frames[0])

    saved = State.save

    def killed(state: State, *rest: object) -> None:
        saved(state, *rest)
        if state.iteration == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pad_fast.distill("digits", out=tmp_path / "parts", progress=QUIET, **settings)
    monkeypatch.undo()
    assert read_film(tmp_path / "parts").iterations[-1] == 6, "killed between checkpoint and frame"
    pad_fast.distill("digits", out=tmp_path / "parts", resume=True, progress=QUIET, **settings)
    assert (tmp_path / "parts" / FILM).read_bytes() == (tmp_path / "whole" / FILM).read_bytes()
