"""`pad-fast check`."""

from __future__ import annotations

import argparse

from ...errors import BackendError
from ..command import Command
from ..output import print_once


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:N (default: auto)")


def _run(options: argparse.Namespace) -> None:
    from ...engines.triton import verdicts
    from ...kernels.launch import interpreted
    from ...runtime.device import resolve_device
    from ...verification.check import run

    device = resolve_device(options.device)
    if device.type != "cuda" and not interpreted():
        raise BackendError(
            f"there is nothing to check on {device}: Triton kernels are for NVIDIA GPUs; set TRITON_INTERPRET=1 to "
            "have them interpreted on the CPU, which takes minutes"
        )
    verdict = run(device, told=lambda finding: print_once(finding.line))
    path = verdicts.path_of(verdict.subject)
    verdicts.write(path, verdict)
    print_once(f"\n{verdict.report()}")
    if verdict.objection is None:
        print_once(f"backend='auto' takes triton: {verdict}")
        return
    raise BackendError(f"backend='auto' takes torch: {verdict.objection}")


CHECK = Command("check", "compare the GPU kernels with torch on this card, and keep the verdict", _flags, _run)
