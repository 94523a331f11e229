"""The draw of an iteration."""

from __future__ import annotations

import pytest
import torch

from pad_fast import Config
from pad_fast.distillation.schedule import draw_iteration, split_batches, start_epoch_limit

SEQUENTIAL = Config(min_start_epoch=2, current_max_start_epoch=5, max_start_epoch=20, expansion_end_epoch=700)


def test_start_range_grows_as_published():
    for iteration in (0, 1, 46, 47, 350, 699, 700, 701, 10_000):
        expected = min(20, 5 + int((20 - 5) * iteration / 700))
        assert start_epoch_limit(SEQUENTIAL, iteration) == expected
    assert start_epoch_limit(SEQUENTIAL, 0) == 5 and start_epoch_limit(SEQUENTIAL, 9999) == 20
    fixed = Config(max_start_epoch=20, sequential_generation=False, current_max_start_epoch=5)
    assert start_epoch_limit(fixed, 0) == 20


def test_start_range_never_narrows():
    config = Config(max_start_epoch=4, current_max_start_epoch=20, expansion_end_epoch=3000)
    assert {start_epoch_limit(config, iteration) for iteration in range(0, 20_000, 100)} == {4}
    assert [draw_iteration(config, iteration, 2, 10).start_epochs[0] < 4 for iteration in (0, 3000, 9999)] == [True] * 3


def test_start_epochs_fill_the_half_open_range():
    starts = [draw_iteration(SEQUENTIAL, iteration, 3, 10).start_epochs[0] for iteration in range(700, 1300)]
    assert set(starts) == set(range(2, 20))
    assert abs(sum(starts) / len(starts) - 10.5) < 0.8
    assert {draw_iteration(SEQUENTIAL, iteration, 3, 10).start_epochs[0] for iteration in range(40)} == {2, 3, 4}


@pytest.mark.parametrize(("count", "batch", "steps"), [(10, 4, 7), (10, 5, 5), (7, 100, 3), (12, None, 4), (3, 1, 8)])
def test_batches_are_pieces_of_permutations_last_first(count, batch, steps):
    draws = torch.Generator().manual_seed(1)
    batches = split_batches(count, batch, steps, draws)
    replay = torch.Generator().manual_seed(1)
    expected: list[list[int]] = []
    while len(expected) < steps:
        pieces = [piece.tolist() for piece in torch.randperm(count, generator=replay).split(batch or count)]
        expected += pieces[::-1]
    assert [rows.tolist() for rows in batches] == expected[:steps]
    assert len(batches) == steps and all(rows.dtype == torch.int64 for rows in batches)


def test_a_short_last_piece_comes_first():
    sizes = [len(rows) for rows in split_batches(10, 4, 6, torch.Generator().manual_seed(0))]
    assert sizes == [2, 4, 4, 2, 4, 4]


@pytest.mark.parametrize("trajectories", [1, 2, 3])
def test_every_expert_is_used_before_any_is_used_again(trajectories):
    config = Config(trajectories=trajectories)
    experts = [expert for iteration in range(30) for expert in draw_iteration(config, iteration, 5, 10).experts]
    rounds = [experts[i : i + 5] for i in range(0, len(experts) - 4, 5)]
    assert all(sorted(each) == list(range(5)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1, "always the same order"


def test_a_draw_is_a_function_of_seed_and_iteration():
    config = Config(trajectories=2, syn_steps=5, batch_syn=4)

    def numbers(config, iteration):
        drawn = draw_iteration(config, iteration, 7, 10)
        return drawn.experts, drawn.start_epochs, [batch.tolist() for batch in drawn.batches]

    before = torch.get_rng_state()
    first = numbers(config, 700)
    assert torch.equal(before, torch.get_rng_state())
    numbers(config, 3)
    assert numbers(config, 700) == first
    assert numbers(config, 701) != first
    assert numbers(Config(trajectories=2, syn_steps=5, batch_syn=4, seed=1), 700) != first
    assert [len(numbers) for numbers in first] == [2, 2, 5]


def test_what_the_first_trajectory_draws_does_not_depend_on_how_many_there_are():
    drawn = [
        draw_iteration(Config(trajectories=trajectories, syn_steps=5, batch_syn=4), 0, 7, 10)
        for trajectories in (1, 2, 4)
    ]
    for more in drawn[1:]:
        assert more.experts[0] == drawn[0].experts[0] and more.start_epochs[0] == drawn[0].start_epochs[0]
        assert all(torch.equal(one, other) for one, other in zip(more.batches, drawn[0].batches, strict=True))
    assert len(set(drawn[2].experts)) == 4 and len(set(drawn[2].start_epochs)) > 1
