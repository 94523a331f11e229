"""FIEx: which images are shown when, against the reference's own ranges."""

from __future__ import annotations

import pytest
import torch

from pad_fast.errors import ConfigError
from pad_fast.experts import Curriculum, prune


def order_of(sizes: list[int]) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return list(torch.randperm(sum(sizes), generator=draws).split(sizes))


@pytest.mark.parametrize("name", ["cifar10", "small"])
def test_ranges_are_the_references(golden, name):
    data = golden("curriculum.npz")
    epochs, count, ratio, add_end, first, second, r1, r2 = data[f"{name}_args"].tolist()
    curriculum = Curriculum(ratio, int(add_end), int(first), int(second), r1, r2)
    spans = [list(curriculum.span(epoch, int(count))) for epoch in range(int(epochs))]
    assert spans == data[name].tolist()
    assert len({tuple(span) for span in spans}) > 5, "a schedule without stages proves nothing"


def test_defaults_are_the_published_ones(golden):
    ratio, add_end, first, second, r1, r2 = golden("curriculum.npz")["cifar10_args"].tolist()[2:]
    assert Curriculum() == Curriculum(ratio, int(add_end), int(first), int(second), r1, r2)


def test_indices_of_classes_of_different_size():
    order = order_of([10, 7, 23])
    curriculum = Curriculum(0.5, 4, 6, 8, 0.1, 0.25)
    for epoch in range(11):
        shown = curriculum.indices(epoch, order)
        expected = []
        for indices in order:
            n = len(indices)
            if epoch <= 4:
                expected += indices[: int((0.5 + 0.5 * epoch / 4) * n)].tolist()
            elif epoch <= 6:
                expected += indices.tolist()
            else:
                expected += indices[int((0.1 if epoch <= 8 else 0.25) * n) :].tolist()
        assert shown.tolist() == expected, f"epoch {epoch}"


def test_no_adding_phase_shows_everything_from_the_start():
    assert Curriculum(0.3, 0, 2, 3, 0.5, 0.5).span(0, 10) == (0, 10)
    assert [Curriculum.none().span(epoch, 7) for epoch in (0, 1, 500)] == [(0, 7)] * 3


def test_scaled_keeps_ratios_and_order():
    short = Curriculum().scaled(20)
    assert (short.add_end_epoch, short.removal1_epoch, short.removal2_epoch) == (4, 8, 12)
    assert (short.initial_ratio, short.removal1_ratio, short.removal2_ratio) == (0.75, 0.1, 0.2)
    Curriculum().scaled(1)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"initial_ratio": -0.1}, "initial_ratio is -0.1"),
        ({"removal1_ratio": 1.5}, "removal1_ratio is 1.5"),
        ({"removal2_ratio": float("nan")}, "removal2_ratio is nan"),
        ({"add_end_epoch": 41}, "add_end_epoch 41, removal1_epoch 40"),
        ({"removal2_epoch": 30}, "removal2_epoch 30"),
        ({"add_end_epoch": -1}, "must be >= 0"),
    ],
)
def test_impossible_settings_are_refused(changed, named):
    with pytest.raises(ConfigError, match=named):
        Curriculum(**changed)


def test_empty_stages_are_found_before_training():
    with pytest.raises(ConfigError, match=r"class 1 \(3 images\) in epoch 0"):
        Curriculum(0.3, 5, 6, 7).require_images(10, [10, 3])
    with pytest.raises(ConfigError, match="class 0 .* in epoch 8"):
        Curriculum(0.9, 5, 6, 7, 0.5, 1.0).require_images(10, [10, 10])
    Curriculum(0.9, 5, 6, 7, 0.5, 1.0).require_images(8, [10, 10])  # that stage is never reached


def test_prune_drops_one_end():
    order = order_of([10, 5])
    hardest, easiest = prune(order, "hardest:0.2"), prune(order, "easiest:0.3")
    assert [rows.tolist() for rows in hardest] == [order[0][:8].tolist(), order[1][:4].tolist()]
    assert [rows.tolist() for rows in easiest] == [order[0][3:].tolist(), order[1][1:].tolist()]
    assert [rows.tolist() for rows in prune(order, "none")] == [rows.tolist() for rows in order]


@pytest.mark.parametrize("rule", ["hardest", "hardest:", "hardest:x", "hardest:1", "middle:0.2", "easiest:-0.1", ""])
def test_malformed_prune_rules(rule):
    with pytest.raises(ConfigError, match="not understood"):
        prune(order_of([4, 4]), rule)


def test_prune_must_leave_something():
    with pytest.raises(ConfigError, match="no image of class 1"):
        prune([torch.arange(5), torch.arange(0)], "easiest:0.5")
