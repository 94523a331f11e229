"""The stages of `gpu_check`: what each does, and how long it may take."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage; `seconds` at most, and a few more in which its processes are ended."""

    seconds: float
    about: str


STAGES = {
    "compile": Stage(60, "how many kernels the other stages need, how many are compiled already; compiles the rest"),
    "smoke": Stage(45, "ceilings of the card, then pad_fast.verification: every family of kernels against torch"),
    "headline": Stage(120, "one gradient of the published settings beside the plain loop, and its memory"),
    "profile": Stage(40, "time and rates of every kernel of a replayed gradient beside what its launches must move"),
    "routes": Stage(30, "our convolution or cuDNN's, by operation and shape, with both times"),
    "training": Stage(55, "epochs of experts and evaluation networks"),
    "matching": Stage(20, "the matching loss by itself"),
    "variants": Stage(80, "one gradient in other ways: activations kept, bf16, float32, 8 trajectories, no graphs"),
    "rivals": Stage(170, "the headline's cases against the plain loop in its stronger forms: captured, compiled"),
    "tests": Stage(120, "everything marked gpu, dealt out to several processes, with a limit for each test"),
    "scores": Stage(20, "scoring by CUDA, where the extension has it"),
    "sanitizer": Stage(40, "compute-sanitizer on the smallest cases"),
    "reproduce": Stage(170, "CIFAR-10 IPC 10 from raw images to an accuracy, where --data names them"),
}
"""In the order in which they run."""

EXTENSION = Stage(50, "the extension, for tests and scores")
TEST_SECONDS = 40.0
"""At most for one test: more than compiling its kernels takes."""
BENCHMARKS = {
    "headline": ["--suites", "unroll", "--variants", "without"],
    "training": ["--suites", "epochs"],
    "matching": ["--suites", "matching"],
    "variants": ["--suites", "unroll", "--variants", "alone"],
    "rivals": ["--suites", "unroll", "--variants", "rivals"],
}
"""Stages that are runs of `benchmarks.gpu`."""


def parse(text: str) -> list[str]:
    """Names of :data:`STAGES`, in their order."""
    wanted = text.split(",")
    for name in wanted:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"there is no stage {name!r}; there are {', '.join(STAGES)}")
    return [name for name in STAGES if name in wanted]
