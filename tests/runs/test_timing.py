"""The cost of a stage is measured, kept when the stage is reused, and never stops a run."""

from __future__ import annotations

import json
import mmap

import pytest
import torch

from pad_fast.errors import StoreError
from pad_fast.runs.timing import StageLog, read_timing

CPU = torch.device("cpu")


def test_stages_are_written_as_they_begin_and_end(tmp_path):
    log = StageLog(tmp_path, CPU)
    with log.stage("data"):
        assert not (tmp_path / "timing.json").exists(), "the folder is not ours before the first stage is over"
    with log.stage("experts"):
        timing = read_timing(tmp_path)
        assert list(timing.stages) == ["data", "experts"] and not timing.finished
        assert timing.stages["data"].seconds is not None and timing.stages["experts"].seconds is None
    log.finish()
    timing = read_timing(tmp_path)
    assert timing.finished and timing.stages["experts"].seconds is not None
    assert timing.stages["experts"].peak_gpu_mib is None
    assert timing.environment["torch"] == torch.__version__


def test_memory_is_of_the_stage_alone(tmp_path):
    log = StageLog(tmp_path, CPU)
    with log.stage("large"), mmap.mmap(-1, 64 * 2**20) as block:
        # Mapped, because an allocator may have as much at hand from before.
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    with log.stage("small"):
        pass
    large, small = log.stages["large"], log.stages["small"]
    assert large.peak_mib is not None and small.peak_mib is not None
    if not large.per_stage:
        pytest.skip("this system only tells the most memory since the process began")
    assert 50 < large.peak_mib - small.peak_mib < 90


def test_a_reused_stage_keeps_what_it_cost_once(tmp_path):
    log = StageLog(tmp_path, CPU)
    with log.stage("data"):
        pass
    with log.stage("experts"):
        pass
    stored = json.loads((tmp_path / "timing.json").read_text())
    stored["stages"]["experts"] |= {"seconds": 1234.5, "peak_mib": 77.0}
    (tmp_path / "timing.json").write_text(json.dumps(stored))
    again = StageLog(tmp_path, CPU)
    with again.stage("data"):
        pass
    with again.stage("experts"):
        again.reused()
    with again.stage("distill"):
        again.resumed()
    stages = read_timing(tmp_path).stages
    assert (stages["experts"].seconds, stages["experts"].peak_mib, stages["experts"].reused) == (1234.5, 77.0, True)
    assert stages["distill"].resumed and not stages["data"].reused and not stages["distill"].reused


def test_a_stage_that_fails_has_no_end(tmp_path):
    log = StageLog(tmp_path, CPU)
    with log.stage("data"):
        pass
    with pytest.raises(ZeroDivisionError), log.stage("distill"):
        _ = 1 / 0
    assert read_timing(tmp_path).stages["distill"].seconds is None


@pytest.mark.parametrize("content", ["", "[]", '{"data": 0.9}', '{"stages": {"data": {"hours": 2}}}'])
def test_foreign_files(tmp_path, content):
    (tmp_path / "timing.json").write_text(content)
    with pytest.raises(StoreError, match=r"timing\.json"):
        read_timing(tmp_path)
    log = StageLog(tmp_path, CPU)  # another version's file is replaced
    with log.stage("data"):
        pass
    assert list(read_timing(tmp_path).stages) == ["data"]
