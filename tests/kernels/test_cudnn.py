"""Which implementation of a convolution is used: forced, without a GPU, measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels.conv import Layer, launches
from pad_fast.kernels.conv import cudnn as routes


@pytest.fixture(autouse=True)
def not_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAD_FAST_CONV", raising=False)


def choose(op: str, layer: Layer) -> str:
    return routes.choose(op, layer, launches.KERNELS[op])


LAYER = Layer(1, 2, 4, 4, 3, 5)


def test_choice_is_forced_by_the_environment(monkeypatch):
    for route in ("triton", "cudnn"):
        monkeypatch.setenv("PAD_FAST_CONV", route)
        assert choose("forward", LAYER) == route
    assert choose("forward", Layer(1, 2, 4, 4, 3, 5, "bf16")) == "triton"
    monkeypatch.setenv("PAD_FAST_CONV", "winograd")
    with pytest.raises(InputError, match="triton, cudnn or unset; got 'winograd'"):
        choose("forward", LAYER)


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(routes, "_measure", lambda *_: pytest.fail("measured"))
    assert choose("forward", LAYER) == "triton"


def test_a_choice_is_measured_once_and_not_while_capturing(monkeypatch):
    layer = Layer(1, 2, 4, 4, 3, 5, device=torch.device("cuda"))
    capturing, calls = [True], []

    def measure(op: str, layer: Layer, kernel: Any) -> routes.Choice:
        calls.append(op)
        return routes._decide(op, layer, {"triton": 2.0, "cudnn": 1.0}, 1e-4)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(routes, "_measure", measure)
    monkeypatch.setattr(routes, "_choices", {})
    assert choose("forward", layer) == "triton" and not calls
    capturing[0] = False
    assert [choose("forward", layer) for _ in range(3)] == ["cudnn"] * 3 and calls == ["forward"]
    capturing[0] = True
    assert choose("forward", layer) == "cudnn"
    assert routes.choices() == {("forward", layer): routes.Choice("cudnn", 2.0, 1.0, 1e-4)}


def test_without_memory_to_measure_the_kernel_is_used(monkeypatch):
    def measure(op: str, layer: Layer, kernel: Any) -> routes.Choice:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(routes, "_measure", measure)
    monkeypatch.setattr(routes, "_choices", {})
    assert choose("forward", Layer(1, 2, 4, 4, 3, 5, device=torch.device("cuda"))) == "triton"


def test_differences():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert routes._difference((a, b), (a, a)) == pytest.approx(0.1)
    assert math.isnan(routes._difference((a, b * math.nan), (a, a)))


def test_the_faster_one_is_used_unless_it_is_wrong():
    fast, slow, close = ({"triton": time, "cudnn": 2.0} for time in (1.0, 4.0, 2.1))
    assert [routes._decide("forward", LAYER, times, 1e-3).route for times in (fast, slow, close)] == [
        "triton",
        "cudnn",
        "triton",
    ]
    for difference in (0.5, math.nan):
        with pytest.warns(RuntimeWarning, match="differs from cuDNN"):
            assert routes._decide("forward", LAYER, fast, difference).route == "cudnn"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", routes.CUDNN)
def test_measuring(op, monkeypatch):
    monkeypatch.setattr(routes, "_choices", {})
    layer = Layer(2, 10, 8, 8, 128, 128, device=torch.device("cuda"))
    state = torch.cuda.get_rng_state()
    route = routes.choose(op, layer, launches.KERNELS[op])
    (choice,) = routes.choices().values()
    assert choice.route == route and choice.difference < 5e-3
    assert 0 < choice.triton_ms < 10 and 0 < choice.cudnn_ms < 10
    assert torch.equal(state, torch.cuda.get_rng_state())


def test_both_routes_have_every_operation():
    assert set(routes.CUDNN) == set(launches.KERNELS)
