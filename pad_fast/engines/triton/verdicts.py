"""Whether the kernels are right and fast on a card: found out once, by a process of its own, and kept.

A kernel that is wrong, crashes the driver or never ends does so in that process (`python -m pad_fast.verification`), at
most for a few minutes; here only its verdict is read. Verdicts are files in the user's cache folder, named by all they
depend on: card, driver, versions and the sources of the kernels.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ...errors import InputError, StoreError
from ...runtime import files, locks
from ...runtime.cards import card_and_versions, digest_of_sources, file_name
from ...runtime.user_cache import cache_folder
from ...runtime.variables import seconds_from

logger = logging.getLogger("pad_fast")

FORMAT = "pad_fast verdict 1"
_SECONDS = 300.0


@dataclass(frozen=True)
class Finding:
    """One comparison with torch.

    Attributes:
        family: what was computed, with its shapes.
        precision: of the kernels.
        error: largest relative difference (L2) from torch in float64, or NaN where there is no result.
        tolerance: that it may reach.
        problem: what was raised instead of a result; "" where nothing was.
    """

    family: str
    precision: str
    error: float
    tolerance: float
    problem: str = ""

    @property
    def right(self) -> bool:
        """Whether the kernels computed the same as torch."""
        return not self.problem and self.error <= self.tolerance  # NaN is not

    @property
    def line(self) -> str:
        """It in a list of others."""
        return f"{'right' if self.right else 'WRONG'}  {self}"

    def __str__(self) -> str:
        said = self.problem or f"error {self.error:.2g}, allowed {self.tolerance:.2g}"
        return f"{self.family} in {self.precision}: {said}"


@dataclass(frozen=True)
class Verdict:
    """What a check has found.

    Attributes:
        subject: card, driver and versions.
        findings: one per family and precision, as far as the check came.
        kernels_ms, torch_ms: medians of one gradient each; 0 where it was not timed.
        failure: why the check did not come to its end; "" where it did.
        keep: whether it would end the same way again; not where memory was short.
    """

    subject: Mapping[str, str]
    findings: Sequence[Finding]
    kernels_ms: float = 0.0
    torch_ms: float = 0.0
    failure: str = ""
    keep: bool = True

    @property
    def faster(self) -> float:
        """How many times torch's speed the kernels reach."""
        return self.torch_ms / self.kernels_ms if self.kernels_ms > 0 else 0.0

    @property
    def faulty(self) -> bool:
        """Whether something is wrong that its authors should hear of."""
        return bool(self.failure) or not self.findings or any(not finding.right for finding in self.findings)

    @property
    def objection(self) -> str | None:
        """Why torch is to be used; None where the kernels are."""
        wrong = next((finding for finding in self.findings if not finding.right), None)
        if wrong is not None:
            return f"its kernels are wrong on {self.subject['card']} ({wrong})"
        if self.failure or not self.findings:
            return f"its kernels could not be checked on {self.subject['card']} ({self.failure or 'no findings'})"
        if self.faster < 1:
            return f"torch is faster on {self.subject['card']} ({1 / self.faster if self.faster else 0:.1f} times)"
        return None

    def __str__(self) -> str:
        """One line for the user."""
        errors = {
            finding.precision: max(each.error for each in self.findings if each.precision == finding.precision)
            for finding in self.findings
        }
        shown = ", ".join(f"{error:.1g} in {precision}" for precision, error in errors.items())
        return (
            f"kernels checked on {self.subject['card']}: largest error {shown}; {self.faster:.1f} times torch's speed"
        )

    def report(self) -> str:
        """Everything, to attach to a report of a fault."""
        lines = [f"{name}: {value}" for name, value in self.subject.items()]
        lines += [finding.line for finding in self.findings]
        lines.append(f"one gradient: kernels {self.kernels_ms:.3g} ms, torch {self.torch_ms:.3g} ms")
        return "\n".join([*lines, *([f"failure: {self.failure}"] if self.failure else []), ""])


def subject_of(device: torch.device) -> dict[str, str]:
    """All that a verdict depends on."""
    return {**card_and_versions(device), "kernels": _sources()}


def path_of(subject: Mapping[str, str]) -> Path:
    """The file of a verdict."""
    return cache_folder() / "verdicts" / file_name(subject)


def read(path: Path, subject: Mapping[str, str]) -> Verdict | None:
    """The verdict in a file; None where there is none that can be used."""
    if not path.exists():
        return None
    try:
        stored = files.read_json(path, "verdict")
        with files.reading(path, "verdict"):
            if stored.pop("format") != FORMAT or stored["subject"] != dict(subject):
                return None
            return Verdict(**{**stored, "findings": tuple(Finding(**each) for each in stored["findings"])})
    except StoreError as error:
        logger.info(str(error))
        return None


def write(path: Path, verdict: Verdict) -> None:
    """Keep a verdict, and beside it the report where something is wrong.

    Raises:
        StoreError: the folder cannot be written to.
    """
    if verdict.faulty:
        files.write_text(path.with_suffix(".txt"), verdict.report())
    files.write_json(path, {"format": FORMAT, **asdict(verdict)})


def command(device: torch.device, out: Path) -> list[str]:
    """The process that checks a card."""
    return [sys.executable, "-m", "pad_fast.verification", str(device), str(out)]


def check(device: torch.device, *, seconds: float | None = None) -> Verdict:
    """Check a card now, in a process of its own.

    Args:
        seconds: at most; `$PAD_FAST_CHECK_SECONDS` or 300 when None.
    """
    subject = subject_of(device)
    limit = seconds_from("PAD_FAST_CHECK_SECONDS", _SECONDS, InputError) if seconds is None else seconds
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "verdict.json"
        failure = _run(command(device, out), limit)
        found = read(out, subject)  # written after every finding, so that one which never ends is known by the next
    if found is None:
        return Verdict(subject, (), failure=failure or "its process ended without a verdict")
    return replace(found, failure=failure) if failure else found


def verdict(device: torch.device) -> Verdict:
    """The verdict on a card: of this process, kept, or found out now, which takes a minute or two.

    Two processes do not check at once: the second one waits and reads what the first has found.
    """
    if device not in _known:  # asked for with every gradient
        _known[device] = _kept_or_checked(device, subject_of(device))
    return _known[device]


def objection(device: torch.device) -> str | None:
    """Why `auto` takes torch on this card; None where it takes the kernels, which is said once."""
    return verdict(device).objection


_known: dict[torch.device, Verdict] = {}


def _kept_or_checked(device: torch.device, subject: Mapping[str, str]) -> Verdict:
    path = path_of(subject)
    kept = read(path, subject)
    if kept is not None:
        return _said(kept, path)
    logger.warning(f"checking the Triton kernels on {subject['card']} against torch, once; this takes a minute or two")
    found: Verdict | None = None
    try:
        with locks.locked(path.with_suffix(".lock")):
            found = read(path, subject)  # another process may have been quicker
            if found is None:
                found = check(device)
                if found.keep:
                    write(path, found)
    except StoreError as error:
        logger.warning(f"the verdict cannot be kept, so every process checks anew ({error}); set PAD_FAST_CACHE_DIR")
    return _said(check(device) if found is None else found, path)


def _said(found: Verdict, path: Path) -> Verdict:
    if found.objection is None:
        logger.info(str(found))
    elif found.faulty:
        report = path.with_suffix(".txt")
        attached = f"; please attach {report} to a report of this fault" if report.exists() else ""
        logger.warning(f"backend: torch instead of triton, because {found.objection}{attached}")
    return found


def _run(words: Sequence[str], seconds: float) -> str:
    """Run a check; what went wrong with the process itself, or ""."""
    # Not a rank of a group: the process works for itself.
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        done = subprocess.run(words, env=alone, timeout=seconds, capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        return f"it did not end within {seconds:g} s"
    except OSError as error:
        return f"its process could not be started: {error.strerror or error}"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"its process ended with exit code {done.returncode}: {last}"


@functools.cache
def _sources() -> str:
    """Digest of the kernels and of what starts them."""
    found = importlib.util.find_spec("pad_fast.kernels")
    assert found is not None and found.submodule_search_locations is not None  # a part of this package
    return digest_of_sources([Path(found.submodule_search_locations[0]), Path(__file__).parent])
