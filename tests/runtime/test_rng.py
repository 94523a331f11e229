"""Named generators: the same purpose draws the same numbers, everything else is independent."""

from __future__ import annotations

import torch

from pad_fast.runtime.rng import derive_seed, generator


def test_seeds_differ_in_every_part():
    seeds = [
        derive_seed(0, "expert", 3),
        derive_seed(1, "expert", 3),
        derive_seed(0, "expert", 4),
        derive_seed(0, "experts", 3),
        derive_seed(0, "expert", "3"),
        derive_seed(0, "expert", 3, 0),
        derive_seed(0, "expert3"),
        derive_seed(0),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_do_not_change_between_versions():
    """Stores and checkpoints are continued by later processes, so these numbers are part of the format."""
    assert derive_seed(0, "expert", 3) == 150_972_251_030_703_697
    assert torch.randperm(5, generator=generator(0, "expert", 3)).tolist() == [3, 4, 1, 0, 2]


def test_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first = torch.rand(4, generator=generator(7, "a", 1))
    second = torch.rand(4, generator=generator(7, "a", 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(4, generator=generator(7, "a", 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_spread():
    draws = torch.tensor([derive_seed(0, "batch", i) % 1000 for i in range(2000)]).double() / 1000
    assert abs(float(draws.mean()) - 0.5) < 0.03
    assert abs(float(draws.std()) - 12**-0.5) < 0.02
