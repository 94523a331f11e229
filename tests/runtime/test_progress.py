"""Progress on a terminal, in a log, and not at all."""

from __future__ import annotations

import sys

import pytest

from pad_fast import Progress
from pad_fast.runtime import progress


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_log_gets_whole_lines_now_and_then(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    seen = []
    for item in Progress().track(range(10), "experts", total=10, unit="expert", detail=lambda: f"loss {len(seen)}"):
        seen.append(item)
        clock.now += 4.0
    captured = capsys.readouterr()
    assert seen == list(range(10)) and captured.out == ""
    assert "\r" not in captured.err and "\x1b" not in captured.err
    lines = captured.err.splitlines()
    assert captured.err.endswith("\n")
    # Every third item of 4 s passes ten seconds; the last item always has its line.
    assert [line.split("|")[0].split("%")[0].split()[-1] for line in lines] == ["30", "60", "90", "100"]
    assert all(line.startswith("experts:") and "s/expert" in line for line in lines)
    assert "3/10" in lines[0] and "10/10" in lines[-1] and lines[-1].endswith("loss 10")
    assert "00:12<00:28" in lines[0], "elapsed and remaining time"


def test_a_resumed_run_counts_what_was_done(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    for _ in Progress().track(range(6, 8), "distill", total=8, done=6):
        clock.now += 11.0
    lines = capsys.readouterr().err.splitlines()
    assert ["7/8" in lines[0], "8/8" in lines[1]] == [True, True] and len(lines) == 2
    assert "00:11<00:11" in lines[0], "the rate counts this run's items only"


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    seen = []
    for item in Progress().track("abc", "scores", total=5, done=2, unit="network", detail=lambda: f"loss {len(seen)}"):
        seen.append(item)
    text = capsys.readouterr().err
    assert seen == ["a", "b", "c"]
    assert "\r" in text and text.endswith("\n")
    last = text.rstrip().split("\r")[-1]
    assert last.startswith("scores: 100%") and "5/5" in last and "loss 3" in last


def test_a_bar_is_closed_when_the_work_fails(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tracked = Progress().track(range(3), "scores", total=3)
    next(tracked)
    tracked.close()
    assert capsys.readouterr().err.endswith("\n")


@pytest.mark.parametrize("tty", [True, False])
def test_quiet_says_nothing(capsys, monkeypatch, tty):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    quiet = Progress(quiet=True)
    quiet.say("hello")
    assert list(quiet.track(range(3), "x", total=3, detail=lambda: 1 / 0)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_messages_go_to_standard_error(capsys):
    Progress().say("init: a note")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "init: a note\n")


@pytest.mark.parametrize("tty", [True, False])
def test_nothing_left_to_do(capsys, monkeypatch, tty):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    assert list(Progress().track(range(5, 5), "x", total=5, done=5)) == []
    assert capsys.readouterr().err == ""
