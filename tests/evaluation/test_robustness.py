"""DD-Ranking's scores by their equations, and the files its own metrics read."""

from __future__ import annotations

import math

import pytest
import torch

from pad_fast import DistilledDataset
from pad_fast.errors import DatasetError
from pad_fast.evaluation import RobustScore, export_ddranking
from pad_fast.evaluation.robustness import augmentation_robust_score, label_robust_score

from ..support.evaluation import real_images
from ..support.small import small_data


def test_scores_at_their_ends():
    assert label_robust_score(full=100, hard=0, own=0, random=100) == pytest.approx(0)
    assert label_robust_score(full=0, hard=100, own=100, random=0) == pytest.approx(1)
    assert label_robust_score(full=80, hard=60, own=70, random=50, weight=0.25) == pytest.approx(
        (math.exp(-0.1) - math.exp(-1)) / (math.e - math.exp(-1))
    )
    assert augmentation_robust_score(own=100, random=0, own_plain=100, random_plain=0) == pytest.approx(1)
    assert augmentation_robust_score(own=60, random=50, own_plain=30, random_plain=50, weight=0.25) == pytest.approx(
        (math.exp(0.025 - 0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    )
    assert RobustScore("LRS", "x", "MLP", (0.5,)).std == 0 and RobustScore("LRS", "x", "MLP", (0.25, 0.5)).mean == 0.375


@pytest.mark.parametrize("soft", [True, False])
def test_ddranking_reads_images_class_by_class(tmp_path, soft):
    data = small_data()
    distilled = real_images(data, soft=soft)
    mixed = torch.tensor([3, 0, 5, 2, 1, 4])
    shuffled = DistilledDataset(
        distilled.images[mixed],
        distilled.label_logits[mixed] if soft else None,
        distilled.labels[mixed],
        distilled.lr,
        None,
        {},
    )
    assert export_ddranking(shuffled, tmp_path / "dd") == tmp_path / "dd"
    images, labels, lr = (
        torch.load(tmp_path / "dd" / f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr")
    )
    assert images.shape == (6, 1, 8, 8) and images.dtype == torch.float32 and lr.item() == 0.0371
    # Its metrics take image k for one of class k // ipc.
    classes = torch.arange(3).repeat_interleave(2)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = int((distilled.images == image).flatten(1).all(1).nonzero()[0])
        assert distilled.labels[place] == classes[row]
        assert torch.equal(label, distilled.targets[place])
    uneven = DistilledDataset(distilled.images[:5], None, distilled.labels[:5], 0.1, None, {})
    with pytest.raises(DatasetError, match="has 1 to 2"):
        uneven.export(tmp_path / "no", "ddranking")
