"""The report: read as written, older files too, and its statistics."""

from __future__ import annotations

import json
import math

import pytest

from pad_fast.errors import StoreError
from pad_fast.evaluation import AccuracyRow, EvaluationReport, RobustScore
from pad_fast.reporting.accuracy_section import accuracy_section, robust_section
from pad_fast.reporting.sweep_page import SweepResult


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


def test_one_network_has_no_standard_deviation():
    rows = (AccuracyRow("PAD", "MLP", (30.0,)), AccuracyRow("random real", "MLP", (8.25,)))
    report = EvaluationReport(rows, (RobustScore("LRS", "PAD", "MLP", (0.25,)),))
    lines = report.table().splitlines()
    assert "+-" not in report.table() and lines[1].endswith("MLP       30.0  (1 network)")
    assert lines[2].endswith("  8.2  (1 network)") and lines[3].endswith("LRS 0.250  (1 network)")
    assert "\u00b1" not in str(accuracy_section(rows, rows[:1])) + str(robust_section(report.scores))
    mixed = EvaluationReport((rows[0], AccuracyRow("random real", "MLP", (8.0, 9.0)))).table().splitlines()
    assert mixed[2].endswith("8.5 +- 0.7  (2 networks)") and len(mixed[1]) == len(mixed[2]) - 1


def test_a_sweep_of_one_network_has_none_either():
    cells = {(("none", 0.0), ("none", 0.0)): (61.0,), (("hardest", 0.1), ("none", 0.0)): (62.5,)}
    result = SweepResult("pad", "digits", 1, cells)
    assert "62.5" in result.table() and "\u00b1" not in result.table() + str(result.page())
    more = SweepResult("pad", "digits", 1, {key: (*values, 60.0) for key, values in cells.items()})
    assert "\u00b1" in more.table() and "over 2 networks" in str(more.page())
