"""Accuracy by class, balanced accuracy and the area under the curve."""

from __future__ import annotations

import math

import pytest
import torch

from pad_fast import EvaluationReport, evaluate, load_dataset
from pad_fast.evaluation import AccuracyRow
from pad_fast.evaluation.outcome import area_under_curve, by_class

from ..support.evaluation import SETTINGS, real_images
from ..support.small import QUIET, small_data


def test_by_class() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    found = by_class(torch.tensor([0, 1, 0, 2, 2, 0, 1]), labels, 3).tolist()
    assert found[0] == pytest.approx(200 / 3) and math.isnan(found[1]) and found[2] == 50


@pytest.mark.parametrize("decimals", [0, 6], ids=["ties", "none"])
def test_the_area_counts_pairs(decimals: int) -> None:
    draws = torch.Generator().manual_seed(0)
    scores = torch.randn(60, generator=draws).round(decimals=decimals)
    labels = (torch.rand(60, generator=draws) < 0.3).long()
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[labels == 1].tolist() for b in scores[labels == 0].tolist()
    ]  # fmt: skip
    assert float(area_under_curve(scores, labels)) == pytest.approx(sum(pairs) / len(pairs))
    assert float(area_under_curve(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0, 0, 1]))) == 1


def two_classes(noise: float = 3.0):
    """Of which the test images are nine to three."""
    whole = small_data(noise=noise)
    train, test = whole.train_labels < 2, whole.test_labels < 2
    test &= ~((whole.test_labels == 1) & (torch.arange(len(test)) >= 13))
    return load_dataset(
        (whole.train_images[train], whole.train_labels[train], whole.test_images[test], whole.test_labels[test])
    )


def test_the_table_of_an_unbalanced_problem(tmp_path) -> None:
    data = two_classes()
    settings = {**SETTINGS, "repeats": 3}
    report = evaluate(real_images(data), data, baselines=["random"], cache_dir=tmp_path, progress=QUIET, **settings)
    counts = data.test_labels.bincount().double()
    for row in report.rows:
        assert len(row.by_class) == len(row.auc) == 3
        for accuracy, classes, balanced in zip(row.accuracies, row.by_class, row.balanced, strict=True):
            assert accuracy == pytest.approx(float((counts * torch.tensor(classes)).sum() / counts.sum()))
            assert balanced == pytest.approx(sum(classes) / 2)
        assert all(0 <= area <= 1 for area in row.auc)
    heading = report.table().splitlines()[0]
    assert heading.endswith("test accuracy, %  balanced  AUC")
    again = evaluate(real_images(data), data, baselines=["random"], cache_dir=tmp_path, progress=QUIET, **settings)
    assert again.rows == report.rows  # out of the files
    report.write(tmp_path / "rows.json")
    assert EvaluationReport.read(tmp_path / "rows.json").rows == report.rows


def test_a_balanced_problem_says_it_once() -> None:
    report = evaluate(real_images(small_data()), small_data(), baselines=False, progress=QUIET, **SETTINGS)
    assert report.rows[0].balanced == pytest.approx(report.rows[0].accuracies)
    assert report.rows[0].auc == () and report.table().splitlines()[0].endswith("test accuracy, %")


def test_a_class_without_test_images_is_null_in_the_file(tmp_path) -> None:
    row = AccuracyRow("x", "ConvNet", (40.0,), by_class=((30.0, math.nan, 50.0),))
    assert row.balanced == (40.0,)
    EvaluationReport((row,)).write(tmp_path / "rows.json")
    assert "null" in (tmp_path / "rows.json").read_text() and "NaN" not in (tmp_path / "rows.json").read_text()
    (found,) = EvaluationReport.read(tmp_path / "rows.json").rows
    assert math.isnan(found.by_class[0][1]) and found.balanced == row.balanced


def test_rows_of_earlier_versions() -> None:
    row = AccuracyRow("x", "ConvNet", (10.0,))
    assert row.balanced == () and EvaluationReport((row,)).table().splitlines()[0].endswith("test accuracy, %")
