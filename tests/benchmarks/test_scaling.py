"""The counted model of several GPUs: what it says crosses between them is what really does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pad_fast import ExpertStore
from pad_fast.distillation.state import State
from pad_fast.distillation.trajectory_matching import Loop
from pad_fast.engines import registry
from pad_fast.models import FlatNetwork
from pad_fast.runtime import distributed
from pad_fast.runtime.distributed import Group
from pad_fast.settings.config import Config

from ..support.paths import ROOT

pytest.importorskip("triton", reason="the kernels' modules import Triton")

from benchmarks import model, scaling

SETTING = model.Setting("tiny", 9, 4, 3, classes=3, resolution=8, depth=2, width=6)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setitem(registry._engines, "triton", model.TritonEngine(model.Operations()))
    scaling.compute.cache_clear()


@pytest.mark.parametrize("split", ["batch", "trajectories"])
def test_what_is_counted_is_what_is_added_up(split, tmp_path, monkeypatch):
    sent = []

    class Counting(Group):
        def sum_(self, *tensors):
            sizes = [tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None]
            sent.extend([sum(sizes)] if sizes else [])

    monkeypatch.setattr(distributed, "_current", Counting(0, 2))
    network = FlatNetwork(SETTING.network())
    store = ExpertStore.create(tmp_path, parameter_count=network.parameter_count, epochs=4, metadata={})
    store.append(torch.randn(5, network.parameter_count))
    config = Config(
        syn_steps=SETTING.steps,
        batch_syn=SETTING.batch,
        max_start_epoch=2,
        train_epochs=4,
        sequential_generation=False,
        split=split,
        trajectories=1 if split == "batch" else 2,
        threshold=None,
        layer_loss_every=0,
    )
    images, labels = torch.randn(9, 3, 8, 8), torch.arange(3).repeat(3)
    state = State.start(images, torch.randn(9, 3), labels, config, torch.device("cpu"))
    Loop(network, store, config, torch.device("cpu")).begin(state)
    assert sent == scaling.sums(SETTING, split, 2)


def test_rows(counted):
    setting = replace(SETTING, images=40, batch=40, width=32)
    row = scaling.row(setting)
    assert row["sums"] == 6 and row["step_bytes"] == 4 * FlatNetwork(setting.network()).parameter_count
    assert row["trajectories_seconds"][1] == row["batch_seconds"][1] == row["stacked_seconds"][1]
    for ranks in (2, 64):
        own = scaling.compute(setting, -(-40 // ranks), scaling.HOST_LAUNCH)
        expected = own + scaling.communication(setting, "batch", ranks)
        assert row["batch_seconds"][ranks] == pytest.approx(expected)
    assert row["trajectories_seconds"][64] > row["trajectories_seconds"][2] > row["trajectories_seconds"][1]
    assert row["stacked_seconds"][8] < 4 * row["stacked_seconds"][1], "a GPU that is nearly idle has room for more"
    text = scaling.markdown([row])
    assert text.count("| tiny |") == 3 and "| 40 | 3 | 6 |" in text


def test_more_bytes_more_ranks_and_more_machines_take_longer():
    assert scaling.all_reduce(1e6, 1) == 0
    seconds = [scaling.all_reduce(1e6, ranks) for ranks in scaling.RANKS[1:]]
    assert seconds == sorted(seconds) and len(set(seconds)) == len(seconds)
    assert scaling.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 300e9, rel=0.01)
    assert scaling.all_reduce(1e9, 64) == pytest.approx(2 * 63 / 64 * 1e9 / 40e9, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [([8, 4, 2, 1, 0.5, 0.25, 0.1], 64), ([8, 9, 2, 1, 1, 1, 1], 1), ([8, 4, 2.5, 2.4, 1, 1, 1], 4)],
)
def test_where_dividing_stops_paying(seconds, best):
    assert scaling.pays_up_to(dict(zip(scaling.RANKS, seconds, strict=True))) == best


def test_the_document_has_every_setting():
    text = Path(ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(scaling.BEGIN)
    tables, mark, _ = rest.partition(scaling.END)
    assert mark
    for setting in model.SETTINGS:
        sums = scaling.sums(setting, "batch", 2)
        line = re.escape(f"| {setting.name} | {setting.batch} | {setting.steps} | {len(sums)} | {sums[0] / 1e6:.2f} |")
        assert len(re.findall(line, tables)) == 1, setting.name
        assert tables.count(f"| {setting.name} |") == 3, setting.name
