"""The check of a card: every family in every precision, then a timing of the case users run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engines.triton.verdicts import Finding, Verdict, subject_of, write
from ..matching import trajectory_matching_loss
from ..models import ConvNet
from .families import LARGE, SMALL, TOLERANCES, Family, families

_PRECISIONS = (("float64", torch.float64, "auto"), ("ieee", torch.float32, "ieee"), ("tf32", torch.float32, "auto"))
_ROUNDS = 5


def run(device: torch.device, out: Path | None = None, *, told: Callable[[Finding], None] | None = None) -> Verdict:
    """Check `device`; what is known so far is written to `out` after every finding.

    Args:
        told: is called with every finding.
    """
    subject, found = subject_of(device), list[Finding]()
    for finding in _findings(device):
        found.append(finding)
        if told is not None:
            told(finding)
        _keep(out, Verdict(subject, tuple(found)))
    short = any("OutOfMemoryError" in finding.problem for finding in found)
    kernels, plain = (0.0, 0.0)
    failure = ""
    if all(finding.right for finding in found):
        try:
            kernels, plain = _times(device)
        except Exception as error:
            failure, short = f"timing: {_words(error)}", isinstance(error, torch.OutOfMemoryError)
    return _keep(out, Verdict(subject, tuple(found), kernels, plain, failure, keep=not short))


def _findings(device: torch.device) -> Iterator[Finding]:
    for family in families(device, LARGE if device.type == "cuda" else SMALL):
        truth: list[Tensor] | None = None
        for name, dtype, precision in _PRECISIONS:
            tolerance = TOLERANCES[name] if family.tolerance is None else family.tolerance
            error, problem = float("nan"), ""
            try:
                if family.recorded:
                    truth = family.compute("triton", dtype, precision)
                elif truth is None:
                    truth = family.compute("autograd", torch.float64, "auto")
                error = _repeated(family, dtype, precision, truth)
            except Exception as problem_met:
                problem = _words(problem_met)
            yield Finding(family.name, name, error, tolerance, problem)


def _repeated(family: Family, dtype: torch.dtype, precision: str, truth: list[Tensor]) -> float:
    """The largest difference from `truth`, of several calls where recordings take part from the second one on."""
    calls = 3 if family.recorded else 1
    return max(
        _difference(got, expected)
        for _ in range(calls)
        for got, expected in zip(family.compute("triton", dtype, precision), truth, strict=True)
    )


def _difference(got: Tensor, expected: Tensor) -> float:
    size = float(expected.double().norm())
    return float((got.double() - expected.double()).norm()) / size if size > 0 else float("nan")


def _times(device: torch.device) -> tuple[float, float]:
    """Milliseconds of one gradient of the case of one image per class, medians in turns: ours, torch's."""
    large = device.type == "cuda"
    net: dict[str, Any] = {} if large else SMALL.blocks
    model = ConvNet(**net).to(device)
    theta = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    sides = (model.config.channels, model.config.resolution, model.config.resolution)
    images = torch.rand(10, *sides, device=device, requires_grad=True)
    labels = torch.zeros(10, model.config.classes, device=device, requires_grad=True)
    batches = [torch.arange(10)] * (20 if large else 1)
    lr = torch.tensor(0.01, device=device)

    def gradient(backend: str) -> float:
        begun = time.perf_counter()
        loss = trajectory_matching_loss(
            model, theta, theta + 0.01, images, labels, lr, batches=batches, backend=backend
        )
        torch.autograd.grad(loss, [images, labels])[0].sum().item()  # waits for the device
        return 1e3 * (time.perf_counter() - begun)

    names, times = ("triton", "autograd"), {"triton": list[float](), "autograd": list[float]()}
    for round_ in range(_ROUNDS + 2):  # the first two compile and record
        for name in names[:: 1 if round_ % 2 else -1]:
            took = gradient(name)
            if round_ >= 2:
                times[name].append(took)
    return statistics.median(times["triton"]), statistics.median(times["autograd"])


def _keep(out: Path | None, verdict: Verdict) -> Verdict:
    if out is not None:
        write(out, verdict)
    return verdict


def _words(error: Exception) -> str:
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}"
