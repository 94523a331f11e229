"""A pytest plugin: every test has a time limit, and what happened to it is on disk before the next one begins.

A test that is out of time ends its process, from a thread that needs neither the interpreter nor the device: whoever
waits for a GPU that hangs hears no signal. `dealing` then goes on with the tests that are left.

    GPU_CHECK_EVENTS    file to which a line is added when a test starts and when it ends
    GPU_CHECK_SECONDS   limit of a test
"""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.gpu_check.dealing import EVENTS, SECONDS

# What a test prints goes elsewhere while it runs; tracebacks belong into the log, at once.
_LOG = os.fdopen(os.dup(2), "w")
_found: dict[str, Any] = {}
_said: list[str] = []


def _note(**event: Any) -> None:
    with open(os.environ[EVENTS], "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around a test with its fixtures."""
    begin = time.monotonic()
    _found.clear()
    _said.clear()
    _note(test=item.nodeid, state="started")
    faulthandler.dump_traceback_later(float(os.environ[SECONDS]), exit=True, file=_LOG)
    result = yield
    faulthandler.cancel_dump_traceback_later()
    found = {"state": "passed", **_found}
    _note(test=item.nodeid, seconds=round(time.monotonic() - begin, 2), said=_said, **found)
    if "CUDA error" in found.get("message", ""):
        os._exit(1)  # no other test of this process could use the device any more
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of a test's three phases, the first that went wrong counts. Lines that begin with "error" are its findings."""
    _said.extend(line for text in _new_output(report) for line in text.splitlines() if line.startswith("error "))
    if report.outcome == "passed":
        return
    if report.failed:
        _LOG.write(f"\n{report.nodeid}, {report.when}\n{report.longreprtext}\n")
        _LOG.writelines(text for text in _new_output(report))
        _LOG.flush()
    if not _found:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = str(report.longreprtext if crash is None else crash.message).strip().splitlines()
        state = "failed" if report.failed and report.when == "call" else "error" if report.failed else "skipped"
        _found.update(state=state, message=words[0][:300] if words else "")


def _new_output(report: pytest.TestReport) -> Iterator[str]:
    """What was captured in this phase."""
    return (text for title, text in report.sections if title.endswith(f" {report.when}"))
