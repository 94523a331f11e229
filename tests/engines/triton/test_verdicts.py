"""`auto` on a card: checked once by another process, which may do anything; the verdict is kept, or torch is used."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from pad_fast import ConvNet, distill, evaluate, score, train_experts, trajectory_matching_loss
from pad_fast.cli.commands.env import _kernels
from pad_fast.engines import cpu, record_backends, registry
from pad_fast.engines.triton import verdicts
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.engines.triton.verdicts import Finding, Verdict
from pad_fast.errors import InputError, StoreError

from ...support.settings import SMALL
from ...support.small import MODEL, QUIET, small_data
from ...support.triton import Emulated

pytest.importorskip("triton", reason="the kernels' modules import Triton")

CPU = torch.device("cpu")
GOOD = (Finding("blocks", "ieee", 1e-6, 1e-2), Finding("blocks", "tf32", 3e-3, 1e-1))
WRONG = Finding("loss (3x32x32)", "ieee", 0.4, 1e-2)
# Without imports of ours: a process for every case, each of which would take seconds to start.
PRELUDE = """
    import json, os, sys, time
    from pathlib import Path
    out = Path(sys.argv[2])
    Path(os.environ["PAD_FAST_CACHE_DIR"], "started").open("a").write("x")
    def finding(family, precision, error, tolerance, problem=""):
        return dict(family=family, precision=precision, error=error, tolerance=tolerance, problem=problem)
    def found(*findings, **more):
        verdict = dict(format=os.environ["FORMAT"], subject=json.loads(os.environ["SUBJECT"]), findings=findings)
        out.write_text(json.dumps({**verdict, "kernels_ms": 0, "torch_ms": 0, "failure": "", "keep": True, **more}))
    good = finding("blocks", "ieee", 1e-6, 1e-2)
"""
ENDS = {
    "right": "found(good, kernels_ms=1.0, torch_ms=5.0)",
    "slow": "found(good, kernels_ms=5.0, torch_ms=1.0)",
    "wrong": "found(good, finding('loss (3x32x32)', 'ieee', 0.4, 1e-2))",
    "nan": "found(good, finding('loss (3x32x32)', 'ieee', float('nan'), 1e-2))",
    "refuses to compile": "found(good, finding('loss', 'tf32', float('nan'), 0.1, 'CompilationError: at 3:4'))",
    "crashes": "found(good); os.abort()",
    "raises": "raise RuntimeError('no driver')",
    "hangs": "found(good); time.sleep(600)",
    "is silent": "",
    "writes nonsense": "out.write_text('{')",
    "runs out of memory": "found(finding('blocks', 'ieee', float('nan'), 1e-2, 'OutOfMemoryError: 3 GiB'), keep=False)",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAD_FAST_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PAD_FAST_CHECK_SECONDS", "60")
    monkeypatch.setenv("FORMAT", verdicts.FORMAT)
    monkeypatch.setenv("SUBJECT", json.dumps(verdicts.subject_of(CPU)))
    monkeypatch.setattr(verdicts, "_known", {})
    return tmp_path


def stand_in(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """The CPU in the place of a card, and a process that ends like this in the place of its check."""
    script = textwrap.dedent(PRELUDE) + ENDS[end]
    monkeypatch.setattr(verdicts, "command", lambda device, out: [sys.executable, "-c", script, str(device), str(out)])
    engine = TritonEngine(Operations(naive=True), recorder=Emulated, objection=verdicts.objection)
    monkeypatch.setitem(registry._engines, "triton", engine)
    monkeypatch.setattr(cpu.CpuEngine, "refuse", lambda self, task: "it stands for a machine with a card")


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_known", {})


def started(cache: Path) -> int:
    path = cache / "started"
    return len(path.read_text()) if path.exists() else 0


def backend() -> str:
    """What `auto` takes."""
    net = ConvNet(channels=1, classes=3, width=4, depth=1, resolution=8)
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    with record_backends() as used:
        loss = trajectory_matching_loss(
            net, theta, theta + 0.1, images, torch.zeros(4, 3), torch.tensor(0.1), batches=[torch.arange(4)]
        )
        loss.backward()
    assert images.grad is not None and images.grad.norm() > 0
    (name,) = used
    return name


def test_a_card_that_passes_is_used_and_said(cache, monkeypatch, caplog):
    stand_in(monkeypatch, "right")
    with caplog.at_level(logging.INFO, logger="pad_fast"):
        assert backend() == backend() == "triton"
    assert "checking the Triton kernels on cpu against torch, once" in caplog.text
    assert caplog.text.count("largest error 1e-06 in ieee; 5.0 times torch's speed") == 1
    another_process(monkeypatch)
    assert backend() == "triton" and started(cache) == 1
    assert not list(cache.rglob("*.txt")) and not list(cache.rglob("*.part"))


@pytest.mark.parametrize("end", [end for end in ENDS if end not in ("right", "slow")])
def test_anything_else_ends_in_torch_with_a_reason_and_a_report(cache, monkeypatch, caplog, end):
    stand_in(monkeypatch, end)
    monkeypatch.setenv("PAD_FAST_CHECK_SECONDS", "2" if end == "hangs" else "60")
    assert backend() == "autograd"
    expected = {
        "wrong": "its kernels are wrong on cpu (loss (3x32x32) in ieee: error 0.4, allowed 0.01)",
        "nan": "wrong on cpu (loss (3x32x32) in ieee: error nan",
        "refuses to compile": "loss in tf32: CompilationError: at 3:4",
        "crashes": "exit code -6",
        "raises": "exit code 1: RuntimeError: no driver",
        "hangs": "it did not end within 2 s",
        "is silent": "ended without a verdict",
        "writes nonsense": "ended without a verdict",
        "runs out of memory": "OutOfMemoryError",
    }[end]
    assert expected in caplog.text and "torch instead of triton" in caplog.text
    kept = end != "runs out of memory"
    reports = list(cache.rglob("*.txt"))
    assert len(reports) == kept
    for report in reports:
        assert str(report) in caplog.text and "torch: " in report.read_text() and "driver: " in report.read_text()
    another_process(monkeypatch)
    assert backend() == "autograd" and started(cache) == (1 if kept else 2)


def test_a_card_on_which_torch_is_faster_uses_torch(cache, monkeypatch, caplog):
    stand_in(monkeypatch, "slow")
    with caplog.at_level(logging.INFO, logger="pad_fast"):
        monkeypatch.setattr(registry, "_said", set())
        assert backend() == "autograd"
    assert "torch is faster on cpu (5.0 times)" in caplog.text and not list(cache.rglob("*.txt"))


def test_backend_by_name_asks_nobody(cache, monkeypatch):
    stand_in(monkeypatch, "wrong")
    net = ConvNet(channels=1, classes=3, width=4, depth=1, resolution=8)
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    given = (torch.rand(4, 1, 8, 8), torch.zeros(4, 3), torch.tensor(0.1))
    with record_backends() as used:
        trajectory_matching_loss(net, theta, theta + 1, *given, batches=[torch.arange(4)], backend="triton")
    assert used == ["triton"] and started(cache) == 0


def test_a_folder_that_cannot_be_written_to_costs_a_check_per_process(cache, monkeypatch, caplog):
    (cache / "verdicts").write_text("a file in the folder's place")
    stand_in(monkeypatch, "right")
    assert backend() == backend() == "triton" and started(cache) == 1
    assert "set PAD_FAST_CACHE_DIR" in caplog.text
    another_process(monkeypatch)
    assert backend() == "triton" and started(cache) == 2


def test_a_disk_that_is_full_costs_no_second_check(cache, monkeypatch, caplog):
    def full(path, verdict):
        raise StoreError(f"cannot write {path}: No space left on device")

    stand_in(monkeypatch, "right")
    monkeypatch.setattr(verdicts, "write", full)
    assert backend() == backend() == "triton" and started(cache) == 1
    assert "No space left on device" in caplog.text


def test_a_gradient_does_not_look_at_the_card_again(cache, monkeypatch):
    stand_in(monkeypatch, "right")
    assert backend() == "triton"
    monkeypatch.setattr(verdicts, "subject_of", lambda device: pytest.fail("looked again"))
    assert backend() == "triton"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "pad_fast verdict 0"}', '{"format": 1, "subject": {}}'])
def test_a_verdict_that_cannot_be_read_is_found_again(cache, monkeypatch, content):
    stand_in(monkeypatch, "right")
    assert backend() == "triton"
    (path,) = cache.rglob("verdicts/*.json")
    whole = path.read_bytes()
    path.write_text(content)
    another_process(monkeypatch)
    assert backend() == "triton" and started(cache) == 2 and path.read_bytes() == whole


def test_other_versions_and_cards_are_checked_anew(cache, monkeypatch):
    stand_in(monkeypatch, "right")
    subject = verdicts.subject_of(CPU)
    assert backend() == "triton"
    paths = {verdicts.path_of(subject)}
    for name in subject:
        changed = {**subject, name: "another"}
        paths.add(verdicts.path_of(changed))
        assert verdicts.read(verdicts.path_of(subject), changed) is None
    assert len(paths) == len(subject) + 1


def test_two_processes_check_once(cache, monkeypatch):
    """And one that is killed meanwhile leaves nothing that the next would wait for or believe."""
    slow = textwrap.dedent(PRELUDE) + "time.sleep(3); " + ENDS["right"]
    program = textwrap.dedent(f"""
        import sys, torch
        from pad_fast.engines.triton import verdicts
        script = {slow!r}
        verdicts.command = lambda device, out: [sys.executable, "-c", script, str(device), str(out)]
        print(verdicts.objection(torch.device("cpu")))
    """)
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE) as killed:
        while not started(cache):
            time.sleep(0.1)
        os.killpg(killed.pid, signal.SIGKILL)
    assert not list(cache.rglob("verdicts/*.json"))
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.communicate(timeout=120)[0].strip() for each in both] == ["None", "None"]
    assert started(cache) == 2


def test_every_stage_goes_through_the_card_or_through_torch(cache, monkeypatch, tmp_path):
    data = small_data()
    given = {
        **SMALL,
        "model": MODEL,
        "dsa": "none",
        "iterations": 2,
        "checkpoint_every": 1,
        "eval_epochs": 1,
        "progress": QUIET,
    }
    results, experts = {}, {}
    for end, engine in (("right", "triton"), ("wrong", "autograd")):
        monkeypatch.setenv("PAD_FAST_CACHE_DIR", str(tmp_path / end))
        (tmp_path / end).mkdir()
        another_process(monkeypatch)
        stand_in(monkeypatch, end)
        with record_backends() as used:
            results[end] = distill(data, out=tmp_path / f"run-{end}", **given)
            by_hand = {"model": MODEL, "dsa": "none", "progress": QUIET}
            store = train_experts(data, out=tmp_path / f"experts-{end}", experts=2, epochs=1, **by_hand)
            experts[end] = store.snapshot(1, 1)
            score(data, model=MODEL, networks=2, epochs=1, progress=QUIET)
            distill(data, out=tmp_path / f"dc-{end}", method="dc", ipc=2, iterations=2, eval_epochs=1, **by_hand)
            evaluate(results[end], data, repeats=2, epochs=1, full_epochs=1, baselines=False, progress=QUIET)
        assert set(used) == {engine} and len(used) > 5
    torch.testing.assert_close(results["right"].images, results["wrong"].images, rtol=0, atol=1e-2)
    torch.testing.assert_close(experts["right"], experts["wrong"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", ["soon", "0", "-3", "nan"])
def test_a_limit_that_is_none(cache, monkeypatch, seconds):
    stand_in(monkeypatch, "right")
    monkeypatch.setenv("PAD_FAST_CHECK_SECONDS", seconds)
    with pytest.raises(InputError, match="a number of seconds, above 0"):
        backend()


def test_the_environment_shows_the_verdict(cache, monkeypatch):
    subject = verdicts.subject_of(CPU)
    monkeypatch.setattr(verdicts, "subject_of", lambda device: subject)
    assert _kernels() == "no card to check them on"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "not checked yet" in _kernels()
    verdicts.write(verdicts.path_of(subject), Verdict(subject, GOOD, 1.0, 4.0))
    assert "4.0 times torch's speed" in _kernels()
    verdicts.write(verdicts.path_of(subject), Verdict(subject, (*GOOD, WRONG), 1.0, 4.0))
    assert _kernels().startswith("not used: its kernels are wrong on cpu (loss")
    assert json.loads(verdicts.path_of(subject).read_text())["format"] == verdicts.FORMAT
