"""Golden files: where they are, and the networks and arguments that those of unrolled runs hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pad_fast import ConvNet, ParameterMask

from .paths import ROOT

CASES = [
    "plain",
    "depth_mask",
    "loss_mask",
    "ragged_batches",
    "gray_28px",
    "depth4_64px",
    "width128",
    "variant_batchnorm_relu_avgpooling",
    "variant_groupnorm_relu_avgpooling",
    "variant_instancenorm_leakyrelu_avgpooling",
    "variant_instancenorm_relu_maxpooling",
    "variant_instancenorm_relu_none",
    "variant_instancenorm_sigmoid_avgpooling",
    "variant_layernorm_relu_avgpooling",
    "variant_none_relu_avgpooling",
]


def golden_folders() -> list[Path]:
    """Folders searched for golden files, complete sets first, the committed selection last."""
    named = os.environ.get("PAD_FAST_GOLDEN")
    folders = [Path(named)] if named else []
    folders += [ROOT / "build" / "carried" / "golden"]  # `python -m benchmarks.gpu_check --bundle` puts it there
    folders += [ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden"]
    return [folder for folder in folders if folder.is_dir()]


def golden_path(name: str) -> Path:
    """The golden file of that name, or skip: only the small ones are committed."""
    for folder in golden_folders():
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"golden file {name} is not in the committed selection; set PAD_FAST_GOLDEN to the full set")


def network_of(case: dict[str, Any]) -> ConvNet:
    return ConvNet(
        channels=int(case["channels"]),
        classes=int(case["classes"]),
        width=int(case["width"]),
        depth=int(case["depth"]),
        resolution=int(case["resolution"]),
        norm=str(case["norm"]),
        activation=str(case["activation"]),
        pooling=str(case["pooling"]),
    ).double()


def arguments_of(case: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        key: torch.from_numpy(np.atleast_1d(case[name])).double()
        for key, name in (
            ("theta_start", "theta_start"),
            ("theta_target", "theta_target"),
            ("images", "images"),
            ("labels", "label_logits"),
        )
    }
    mask = ParameterMask(str(case["mask_kind"]), float(case["mask_ratio"]))
    indices = torch.from_numpy(case["batch_indices"]).split(case["batch_sizes"].tolist())
    return {**tensors, "lr": torch.tensor(float(case["syn_lr"]), dtype=torch.float64), "batches": indices, "mask": mask}


def served_natively(case: dict[str, Any]) -> bool:
    return (str(case["norm"]), str(case["activation"]), str(case["pooling"])) == ("instancenorm", "relu", "avgpooling")
