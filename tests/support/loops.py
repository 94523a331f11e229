"""A distillation loop that takes milliseconds: random walks in place of experts, nine images of three classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from pad_fast import ConvNet, ExpertStore
from pad_fast.distillation.state import State
from pad_fast.models import FlatNetwork
from pad_fast.settings.config import Config

CPU = torch.device("cpu")


def small_config(**changes: object) -> Config:
    base = Config(
        model="ConvNet",
        iterations=6,
        syn_steps=3,
        expert_epochs=2,
        train_epochs=5,
        max_start_epoch=3,
        sequential_generation=False,
        batch_syn=4,
        lr_img=0.3,
        lr_lr=1e-3,
        lr_y=0.2,
        lr_init=0.05,
        mask_ratio=0.4,
        threshold=None,
        checkpoint_every=2,
        dsa="color_crop_scale_rotate",
        seed=7,
    )
    return replace(base, **changes)


def small_network() -> FlatNetwork:
    torch.manual_seed(0)
    return FlatNetwork(ConvNet(channels=1, classes=3, width=6, depth=2, resolution=8))


def walks(folder: Path, network: FlatNetwork) -> ExpertStore:
    """Two short random walks: snapshots that are neither equal nor on a line."""
    draws = torch.Generator().manual_seed(1)
    store = ExpertStore.create(folder, parameter_count=network.parameter_count, epochs=5, metadata={"model": "test"})
    for _ in range(2):
        walk = [network.initial()]
        for _ in range(5):
            walk.append(walk[-1] + 0.02 * torch.randn(network.parameter_count, generator=draws))
        store.append(torch.stack(walk))
    return store


def start(config: Config) -> State:
    draws = torch.Generator().manual_seed(2)
    labels = torch.arange(3).repeat_interleave(3)
    return State.start(
        torch.randn(9, 1, 8, 8, generator=draws), torch.randn(9, 3, generator=draws), labels, config, CPU
    )


def rows_of(folder: Path) -> list[dict[str, float]]:
    """Of the metrics in a run's folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
