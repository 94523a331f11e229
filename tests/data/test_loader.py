"""Batches for a training loop of one's own, and the figure of a set."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pad_fast import DSA, network
from pad_fast.data import MeanStd, Pixels
from pad_fast.errors import ConfigError

from ..support.evaluation import real_images
from ..support.paths import ROOT
from ..support.small import MODEL, small_data
from .test_distilled import distilled


def places(images, batches) -> list[int]:
    """Which image each of the unaugmented batches' is."""
    return [int((images == image).flatten(1).all(1).nonzero()) for batch, _ in batches for image in batch]


@pytest.mark.parametrize("soft", [True, False])
def test_a_pass_gives_every_image_once_with_its_target(soft):
    made = distilled(soft=soft)
    loader = made.loader(batch=4, augment=False, seed=3)
    first, second = list(loader), list(loader)
    assert len(loader) == 2 and [len(images) for images, _ in first] == [4, 2]
    orders = [places(made.images, batches) for batches in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6)) and orders[0] != orders[1]
    targets = torch.cat([targets for _, targets in first])
    assert torch.equal(targets, (made.label_logits.softmax(-1) if soft else made.labels)[orders[0]])
    again = made.loader(batch=4, augment=False, seed=3)
    assert [places(made.images, batches) for batches in (list(again), list(again))] == orders
    assert places(made.images, made.loader(batch=4, augment=False, seed=4)) != orders[0]


@pytest.mark.parametrize("augment", [True, "flip", DSA("flip")])
def test_batches_are_augmented_as_the_set_was(augment):
    made = distilled(config={"dsa": "flip"})
    kept = mirrored = 0
    for _ in range(4):
        for images, _ in made.loader(batch=3, augment=augment, seed=5):
            for image in images:
                kept += bool((made.images == image).flatten(1).all(1).any())
                mirrored += bool((made.images.flip(3) == image).flatten(1).all(1).any())
    assert kept + mirrored == 24 and kept and mirrored
    first = [images for images, _ in made.loader(batch=3, augment=augment, seed=5)]
    assert all(map(torch.equal, first, (images for images, _ in made.loader(batch=3, augment=augment, seed=5))))
    assert distilled(config={}).loader().augment.strategy == "color_crop_cutout_flip_scale_rotate"
    with pytest.raises(ConfigError, match="Did you mean 'color'"):
        made.loader(augment="colour")


def test_four_lines_train_a_network():
    data = small_data()
    made = real_images(data, ipc=4)
    net = network(MODEL, channels=1, classes=3, resolution=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=made.lr, momentum=0.9)
    loader = made.loader(batch=5, seed=0)
    for _ in range(30):
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(images), targets).backward()
            optimizer.step()
    tested = net(made.whitening.apply(data.test_images)).argmax(1)
    assert float((tested == data.test_labels).double().mean()) > 0.8


def test_what_the_documents_show_runs():
    page = (ROOT / "docs" / "distilled.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shown: dict[str, object] = {}
    exec(compile(code, "docs/distilled.md", "exec"), shown)
    assert sorted(torch.cat([y for _, y in shown["made"].loader(batch=10)]).tolist()) == sorted([*range(10)] * 2)


def test_no_batches():
    with pytest.raises(ConfigError, match="batch is 0; it must be at least 1"):
        distilled().loader(batch=0)


def test_normalising_anew():
    made = distilled(whitening="zca")
    other = MeanStd(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.6]))
    moved = made.normalized(other)
    assert moved.whitening is other and torch.equal(moved.images, other.apply(made.pixels()))
    pixels = replace(made, images=made.pixels(), whitening=Pixels())
    assert pixels.are_pixels and not moved.are_pixels and torch.equal(pixels.normalized(other).images, moved.images)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("known", [True, False])
def test_a_figure(channels, known):
    pytest.importorskip("matplotlib").use("Agg")
    white = MeanStd(torch.full((channels,), 0.5), torch.full((channels,), 0.1)) if known else None
    images = torch.randn(6, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    made = replace(distilled(images=images, labels=torch.tensor([2, 0, 0, 2, 2, 0])), whitening=white)
    figure = made.plot(columns=2)
    (axes,) = figure.axes
    sheet = torch.from_numpy(axes.images[0].get_array().copy())
    assert sheet.shape == (2 * 5, 2 * 6, 3)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "ç"]  # class 1 has no images
    if known and channels != 2:
        expected = (made.pixels().clamp(0, 1) * 255).round().byte().expand(6, 3, 4, 5)
        for (top, left), index in {(0, 0): 1, (0, 1): 2, (1, 0): 0, (1, 1): 3}.items():
            drawn = sheet[top * 5 : top * 5 + 4, left * 6 : left * 6 + 5]
            assert torch.equal(drawn, expected[index].permute(1, 2, 0))
    with pytest.raises(ConfigError, match="columns is 0"):
        made.plot(columns=0)
