"""Networks of any origin from scores to the evaluated set."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pad_fast
from pad_fast.engines import Task, record_backends, registry
from pad_fast.errors import InputError
from pad_fast.models.spec import NetworkSpec

from ..support.paths import ROOT
from ..support.settings import SMALL
from ..support.small import QUIET, small_data


class Mixed(nn.Module):
    """Batch norm, dropout, a shared layer, a frozen one, layer norm and attention."""

    def __init__(self, channels: int, classes: int, resolution: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 8, 2, stride=2)
        self.norm, self.frozen = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.frozen.requires_grad_(False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.between, self.shared, self.drop = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.2)
        self.last = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.norm(self.patches(x))).flatten(2).transpose(1, 2)
        x = self.between(x + self.attention(x, x, x, need_weights=False)[0])
        x = self.shared(torch.tanh(self.shared(self.drop(x))))
        return self.last(x.mean(1))


def two_layers(channels: int, classes: int, resolution: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * resolution**2, 9), nn.Tanh(), nn.Linear(9, classes))


NETWORKS: dict[str, Any] = {
    "torchvision": "torchvision:resnet18",
    "timm": "timm:vit_tiny_patch16_224",
    "lambda": lambda channels, classes, resolution: two_layers(channels, classes, resolution),
    "class": Mixed,
    "path": "python:tests.pipeline.test_any_network:two_layers",
    "ours by class": pad_fast.ConvNet,
}


def large_data() -> pad_fast.ImageDataset:
    """Of 32x32 pixels, which networks for photographs do not shrink to one."""
    small = small_data()
    images, labels = (small.train_images, small.test_images), (small.train_labels, small.test_labels)
    large = [each.repeat_interleave(4, 2).repeat_interleave(4, 3) for each in images]
    return pad_fast.load_dataset((large[0], labels[0], large[1], labels[1]))


def distilled(model: Any, data: Any, out: Path, **changes: Any) -> pad_fast.DistilledDataset:
    settings = {**SMALL, "model": model, "num_experts": 1, "lr_img": 0.1, "lr_lr": 1e-9, "threshold": None, **changes}
    return pad_fast.distill(data, out=out, progress=QUIET, **settings)


@pytest.mark.parametrize("which", NETWORKS)
def test_from_scores_to_the_evaluated_set(which: str, tmp_path: Path) -> None:
    if which in ("timm", "torchvision") and importlib.util.find_spec(which) is None:
        pytest.skip(f"{which} is not installed")
    model = NETWORKS[which]
    data, changes = small_data(), {"iterations": 4}
    if which in ("timm", "torchvision"):
        # Batch norm over a few numbers is far from stable: small steps, more images.
        data, changes = large_data(), {"iterations": 2, "syn_steps": 2, "ipc": 3, "lr_img": 1e-4, "lr_y": 0.01}
        changes |= {"eval_networks": 1, "eval_epochs": 1, "eval_baselines": False}
    with record_backends() as used:
        found = distilled(model, data, tmp_path / "run", **changes)
    if which != "ours by class":
        assert set(used) == {"autograd"}
    name = pad_fast.Config(model=model).model
    assert found.config["model"] == name
    assert {row.model for row in found.evaluation} == {name}
    assert all(row["loss"] != 1 for row in found.history)
    assert torch.equal(found.images, pad_fast.load(tmp_path / "run").images)
    again = pad_fast.evaluate(
        {"a": found}, data, models=["MLP", model], repeats=1, epochs=2, baselines=False, progress=QUIET
    )
    assert [row.model for row in again.rows] == ["MLP", name]


def test_that_the_functional_engine_serves_it_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "_said", set())
    network = NetworkSpec(pad_fast.Config(model=Mixed).model, 1, 3, 8).build(0, "said")
    with caplog.at_level("INFO", logger="pad_fast"):
        registry.select("auto", Task(network, torch.device("cpu"), torch.float32, "exact", "auto"))
    assert "backend: autograd (" in caplog.text and "Mixed is not a pad_fast.ConvNet" in caplog.text


def test_a_lambda_is_named_again_to_go_on(tmp_path: Path) -> None:
    """Another process does not know it, and says so before any work."""
    model = NETWORKS["lambda"]
    whole = distilled(model, "digits", tmp_path / "whole", iterations=4)
    distilled(model, "digits", tmp_path / "run", iterations=2)
    program = (
        "import sys, pad_fast\n"
        "pad_fast.distill(config=sys.argv[1] + '/config.yaml', out=sys.argv[1], iterations=4, resume=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert "only the process which named it has; pass the same function as model= again" in done.stderr
    gone_on = distilled(model, "digits", tmp_path / "run", iterations=4, resume=True)
    assert torch.equal(gone_on.images, whole.images)
    assert gone_on.config["model"].startswith("local:")


def test_a_network_that_cannot_be_differentiated_twice_says_which_operation(tmp_path: Path) -> None:
    class Once(nn.Module):
        def __init__(self, channels: int, classes: int, resolution: int) -> None:
            super().__init__()
            self.last = nn.Linear(channels * resolution**2, classes)

        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(self.last(x.flatten(1)))

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad * ctx.saved_tensors[0]

    with pytest.raises(InputError, match="of Once cannot be .*Doubled is marked once_differentiable"):
        distilled(Once, small_data(), tmp_path / "run")
