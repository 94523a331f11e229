"""The report: read as written, older files too, and its statistics."""

from __future__ import annotations

import json
import math

import pytest

from pad_fast.errors import StoreError
from pad_fast.evaluation import AccuracyRow, EvaluationReport, RobustScore


def test_a_report_is_read_as_written_and_older_files_too(tmp_path):
    rows = (AccuracyRow("PAD", "MLP", (30.0, 31.5)), AccuracyRow("random", "MLP", (20.25,)))
    report = EvaluationReport(rows, (RobustScore("LRS", "PAD", "MLP", (0.25, 0.75)),), "abc")
    path = tmp_path / "evaluation.json"
    report.write(path)
    assert EvaluationReport.read(path) == report
    stored = json.loads(path.read_text())
    for older in (stored["rows"], {"rows": stored["rows"]}):
        path.write_text(json.dumps(older))
        assert EvaluationReport.read(path) == EvaluationReport(rows)


@pytest.mark.parametrize("content", ["", "3", "[1]", '{"rows": [{"name": "PAD", "model": "MLP", "accuracies": []}]}'])
def test_a_report_that_is_none(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"evaluation\.json"):
        EvaluationReport.read(path)


def test_mean_and_standard_deviation():
    row = AccuracyRow("x", "ConvNet", (10.0, 20.0, 60.0))
    assert (row.mean, row.networks) == (30.0, 3)
    assert row.std == pytest.approx(math.sqrt((400 + 100 + 900) / 2))
    assert AccuracyRow("x", "ConvNet", (10.0,)).std == 0.0
    line = EvaluationReport((row,)).table().splitlines()[1]
    assert line.split() == ["x", "ConvNet", "30.0", "+-", "26.5", "(3", "networks)"]
