"""Networks side by side, one thread each, are the networks one by one."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch

from pad_fast import evaluate
from pad_fast.engines.registry import record_backends
from pad_fast.errors import InputError
from pad_fast.evaluation.side_by_side import side_by_side
from pad_fast.training.trainer import Trainer

from ..support.evaluation import SETTINGS, real_images
from ..support.native import require_native
from ..support.small import QUIET, small_data


@pytest.mark.parametrize("backend", ["cpu", "autograd"])
def test_networks_side_by_side_are_the_networks_one_by_one(backend, monkeypatch):
    if backend == "cpu":
        require_native()
    data = small_data(noise=1.0)
    distilled = real_images(data)
    settings = {**SETTINGS, "backend": backend, "repeats": 3, "epochs": 20}
    one_by_one = evaluate(distilled, data, baselines=["random", "full"], progress=QUIET, **settings)
    threads, original = set(), Trainer.epoch

    def record(self, *a, **named):
        threads.add(threading.get_ident())
        return original(self, *a, **named)

    monkeypatch.setattr(Trainer, "epoch", record)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with record_backends() as used:
            together = evaluate(distilled, data, baselines=["random", "full"], progress=QUIET, **settings)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(used) == {backend}
    assert threading.get_ident() not in threads and len(threads) > 1
    assert together == one_by_one


def counting(item, *, epochs=6):
    """Something long: it yields, and then is squared."""
    for _ in range(epochs):
        time.sleep(0.03)
        yield
    return item * item


def test_side_by_side_gives_every_result_once():
    assert sorted(side_by_side(partial(counting, epochs=3), range(7), workers=2)) == [i * i for i in range(7)]
    assert list(side_by_side(partial(counting, epochs=0), range(3), workers=1)) == [0, 1, 4]
    assert list(side_by_side(counting, [], workers=4)) == []


def test_three_networks_share_two_workers_evenly():
    threads = {item: set() for item in range(3)}

    def run(item):
        for _ in range(10):
            threads[item].add(threading.get_ident())
            time.sleep(0.03)
            yield
        return item, 9

    assert sorted(side_by_side(run, range(3), workers=2)) == [(item, 9) for item in range(3)]
    assert len(set.union(*threads.values())) == 2
    assert any(len(seen) == 2 for seen in threads.values()), "none was handed on from one worker to the other"


def test_side_by_side_stops_where_one_fails():
    turns = []

    def run(item):
        for _ in range(1000):
            turns.append(item)
            if item == 1 and len(turns) > 6:
                raise InputError("diverged")
            time.sleep(0.01)
            yield
        return item

    with pytest.raises(InputError, match="diverged"):
        list(side_by_side(run, range(5), workers=2))
    assert len(turns) < 100 and set(turns) <= {0, 1, 2}, "at most three are under way"
