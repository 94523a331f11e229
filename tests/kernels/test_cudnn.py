"""Which implementation of a convolution is used: forced, without a GPU, measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast import distill
from pad_fast.errors import InputError
from pad_fast.kernels.conv import Layer, choices, launches
from pad_fast.kernels.conv import cudnn as routes
from pad_fast.kernels.conv.choices import Choice, Choices
from pad_fast.runs.folder import CONVOLUTIONS

from ..support.settings import SMALL
from ..support.small import QUIET


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No route is forced or known, in this process or on the disk."""
    monkeypatch.delenv("PAD_FAST_CONV", raising=False)
    monkeypatch.setenv("PAD_FAST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(routes, "_choices", Choices())


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A card on which cuDNN is faster; the operations that were measured on it."""
    measured: list[str] = []

    def measure(op: str, layer: Layer, kernel: Any) -> Choice:
        measured.append(op)
        return routes._decide(op, layer, {"triton": 2.0 + len(measured), "cudnn": 1.0}, 1e-4)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(choices, "card_and_versions", lambda device: {"card": f"one at {device.type}"})
    monkeypatch.setattr(routes, "_measure", measure)
    return measured


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


ON_CARD = Layer(1, 2, 4, 4, 3, 5, device=torch.device("cuda:0"))


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_choices", Choices())


def test_a_choice_is_measured_once_and_not_while_capturing(monkeypatch, card):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose("forward", ON_CARD) == "triton" and not card
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert [choose("forward", ON_CARD) for _ in range(3)] == ["cudnn"] * 3 and card == ["forward"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose("forward", ON_CARD) == "cudnn"
    assert routes.choices() == {("forward", ON_CARD): Choice("cudnn", 3.0, 1.0, 1e-4)}


def test_the_next_process_takes_the_same_route(monkeypatch, card):
    for op in ("forward", "tangent"):
        choose(op, ON_CARD)
    chosen = routes.choices()
    another_process(monkeypatch)
    assert [choose(op, ON_CARD) for op in ("forward", "tangent")] == ["cudnn"] * 2 and card == ["forward", "tangent"]
    assert routes.choices() == chosen
    second = replace(ON_CARD, device=torch.device("cuda:1"))
    assert choose("forward", second) == "cudnn" and card == ["forward", "tangent"], "an equal card"
    choose("forward", replace(ON_CARD, batch=3)), choose("forward", replace(ON_CARD, precision="ieee"))
    assert card == ["forward", "tangent", "forward", "forward"]


def test_a_run_notes_what_was_used(card, tmp_path):
    distill(out=tmp_path / "plain", progress=QUIET, **SMALL)
    assert not (tmp_path / "plain" / CONVOLUTIONS).exists()
    choose("forward", ON_CARD)
    distill(out=tmp_path / "run", progress=QUIET, **SMALL)
    (noted,) = json.loads((tmp_path / "run" / CONVOLUTIONS).read_text()).items()
    assert noted[0].startswith("forward trajectories=1 batch=2") and noted[1]["route"] == "cudnn"


def test_whoever_measured_first_decides(monkeypatch, card):
    """Two processes that measure at a time go on with one choice."""
    late = Choices()
    assert late.get("forward", ON_CARD) is None
    choose("forward", ON_CARD)
    assert late.put("forward", ON_CARD, Choice("triton", 1.0, 2.0, 0.0), keep=True).route == "cudnn"
    assert late.used() == routes.choices()


@pytest.mark.parametrize("content", ["", "[]", '{"format": "pad_fast convolutions 0", "choices": {}}', '{"format": 1'])
def test_choices_that_cannot_be_read_are_made_again(monkeypatch, card, content):
    choose("forward", ON_CARD)
    path = choices.path_of(ON_CARD.device)
    whole = path.read_text()
    path.write_text(content)
    another_process(monkeypatch)
    assert choose("forward", ON_CARD) == "cudnn" and card == ["forward"] * 2
    assert path.read_text() == whole.replace("3.0", "4.0")


def test_a_folder_that_cannot_be_written_to(monkeypatch, card, tmp_path):
    (tmp_path / "cache").write_text("a file in the folder's place")
    assert [choose("forward", ON_CARD) for _ in range(2)] == ["cudnn"] * 2 and card == ["forward"]


def test_without_memory_to_measure_the_kernel_is_used(monkeypatch, card):
    def measure(op: str, layer: Layer, kernel: Any) -> Choice:
        raise torch.OutOfMemoryError

    working = routes._measure
    monkeypatch.setattr(routes, "_measure", measure)
    assert choose("forward", ON_CARD) == "triton"
    another_process(monkeypatch)
    monkeypatch.setattr(routes, "_measure", working)
    assert choose("forward", ON_CARD) == "cudnn", "want of memory is not kept"


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
    layer = Layer(2, 10, 8, 8, 128, 128, device=torch.device("cuda"))
    state = torch.cuda.get_rng_state()
    route = routes.choose(op, layer, launches.KERNELS[op])
    (choice,) = routes.choices().values()
    assert choice.route == route and choice.difference < 5e-3
    assert 0 < choice.triton_ms < 10 and 0 < choice.cudnn_ms < 10
    assert torch.equal(state, torch.cuda.get_rng_state())


def test_both_routes_have_every_operation():
    assert set(routes.CUDNN) == set(launches.KERNELS)
