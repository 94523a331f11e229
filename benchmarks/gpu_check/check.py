"""What each stage does: processes in a copy of the tree, and the parts that come out."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_results
from benchmarks.gpu_check import carried, dealing, tree
from benchmarks.gpu_check.processes import Part, Surroundings
from benchmarks.gpu_check.results import Results, read_json
from benchmarks.gpu_check.stages import BENCHMARKS, EXTENSION, STAGES, TEST_SECONDS

VERDICT = "verdict.json"


@dataclass
class Check:
    """A check of one device.

    Attributes:
        scale: multiplies the time limits.
        data: raw images for the reproduce stage.
    """

    results: Results
    device: str
    stages: list[str]
    scale: float = 1.0
    data: Path | None = None

    def __post_init__(self) -> None:
        self.have = tree.importable(tree.NEEDED + tree.USEFUL)
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        paths = [str(tree.TREE), *filter(None, [inherited.get("PYTHONPATH")])]
        given = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **carried.environment()}
        self.cuda = self.device.startswith("cuda")
        # Tiny networks, on a machine that may be busy: threads would wait for each other.
        threads = {} if self.cuda else {"OMP_NUM_THREADS": "1"}
        self.where = Surroundings(tree.TREE, {**threads, **inherited, **given}, self.results.refresh)

    def run(self) -> bool:
        """All stages, and what they need before them; whether everything went well."""
        missing = [name for name in tree.NEEDED if not self.have[name]]
        detail = f"missing: {', '.join(missing)}" if missing else ""
        self.results.note(Part("modules", "failed" if missing else "ok", detail=detail))
        self._perform("sources", self._sources)
        for name in self.stages:
            if name in ("tests", "scores") and not any(part.name == "extension" for part in self.results.parts):
                self._perform("extension", self._extension)
            self._perform(name, getattr(self, f"_{name}", lambda name=name: self._benchmark(name)))
        return all(part.state in ("ok", "skipped") for part in self.results.parts)

    def _perform(self, name: str, work: Any) -> None:
        """One part; a program of ours that fails costs its own part only."""
        self.results.begin(name)
        try:
            part = work()
        except Exception as error:
            (self.results.logs / f"{name}-crash.log").write_text(traceback.format_exc(), encoding="utf-8")
            part = Part(name, "failed", detail=f"{type(error).__name__}: {error}"[:200])
        self.results.note(part)

    def _seconds(self, name: str) -> float:
        return self.scale * (STAGES[name] if name in STAGES else EXTENSION).seconds

    def _log(self, name: str) -> Path:
        return self.results.logs / f"{name}.log"

    def _program(self, stage: str, module: str, *arguments: str, seconds: float, **environment: str) -> Part:
        """A program of the benchmarks, which writes a JSON file of its name; its output is the table."""
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        name = "ceilings" if module.endswith("ceilings") else stage
        command += ["--json", str(self.results.logs / f"{name}.json")]
        part = self.where.run(stage, command, self._log(stage), seconds=seconds, **environment)
        part.table = said(self._log(stage))
        return part

    @property
    def _interpreted(self) -> dict[str, str]:
        """On a CPU, kernels are interpreted."""
        return {} if self.cuda else {"TRITON_INTERPRET": "1"}

    def _sources(self) -> Part:
        tree.copy_sources()
        kernels = carried.settle()
        return Part("sources", "ok", detail=f"{kernels} compiled kernels were carried along" if kernels else "")

    def _compile(self) -> Part:
        others = [name for name in self.stages if name != "compile"] or [*STAGES]
        arguments = ["--stages", ",".join(others), "--seconds", str(self._seconds("compile") - 10)]
        if not self.cuda:
            arguments += ["--capability", "90", "--tiny"]
        part = self._program("compile", "gpu_check.compiling", *arguments, seconds=self._seconds("compile"))
        each = read_json(self.results.logs / "compile.json").get("seconds_per_variant")
        if "tests" in others and each:
            part.table.append(dealing.forecast(dealing.listed(), each, self._seconds("tests")))
        return part

    def _smoke(self) -> Part:
        where = ["--device", self.device]
        found = self._program("smoke", "gpu_check.ceilings", *where, seconds=self._seconds("smoke") / 2)
        ceilings = [line for line in found.table if "/s" in line]
        command = [sys.executable, "-m", "pad_fast.verification", self.device, str(self.results.logs / VERDICT)]
        left = self._seconds("smoke") - found.seconds
        part = self.where.run("smoke", command, self._log("smoke"), seconds=left, **self._interpreted)
        part.seconds += found.seconds
        lines = verdict_of(self.results.logs / VERDICT)
        part.table = [*(ceilings or [f"no ceilings: {found.state} {found.detail}"]), *lines]
        wrong = [line for line in lines if line.startswith("WRONG")]
        if wrong:
            part.state, part.detail = "failed", wrong[0]
        elif part.state == "ok" and found.state != "ok":
            part.state, part.detail = found.state, f"ceilings: {found.detail}"
        return part

    def _benchmark(self, stage: str) -> Part:
        seconds = self._seconds(stage)
        arguments = ["--device", self.device, "--minutes", str(seconds / 60 - 0.1), *BENCHMARKS[stage]]
        if not self.cuda:
            arguments += ["--backend", "autograd", "--tiny", "--rounds", "2"]
        return self._program(stage, "gpu", *arguments, seconds=seconds)

    def _rivals(self) -> Part:
        part = self._benchmark("rivals")  # ours was measured by the headline
        rows = [read_json(self.results.logs / f"{name}.json").get("rows", []) for name in ("headline", "rivals")]
        part.table += gpu_results.against_strongest([row for each in rows for row in each])
        return part

    def _profile(self) -> Part:
        seconds = self._seconds("profile")
        arguments = ["--device", self.device, "--seconds", str(seconds - 3)]
        return self._program("profile", "gpu_check.profiling", *arguments, seconds=seconds)

    def _routes(self) -> Part:
        if not self.cuda:
            return skipped("routes", "there is no GPU to choose for")
        seconds = self._seconds("routes")
        arguments = ["--device", self.device, "--seconds", str(seconds - 8)]
        return self._program("routes", "gpu_check.routes", *arguments, seconds=seconds)

    def _extension(self) -> Part:
        if not (self.have["pybind11"] and self.have["setuptools"]):
            return skipped("extension", "no pybind11; nothing but scores needs it")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        built = self.where.run("extension", command, self._log("extension"), seconds=self._seconds("extension"))
        built.found = {"library": [path.name for path in (tree.TREE / "pad_fast").glob("_C*.so")]}
        if not built.found["library"]:
            built.state = "skipped"
            built.detail += " no extension; nothing but scores needs it"
        return built

    def _scores(self) -> Part:
        if not self.cuda or not tree.built_with_cuda():
            return skipped("scores", "no CUDA code in the extension (no nvcc?), or no GPU asked for")
        return self._program("scores", "scoring", "--parts", "cuda", seconds=self._seconds("scores"))

    def _tests(self) -> Part:
        return self._run_tests("tests", sanitizer=False)

    def _sanitizer(self) -> Part:
        return self._run_tests("sanitizer", sanitizer=True)

    def _run_tests(self, name: str, *, sanitizer: bool) -> Part:
        tests = {test: count for test, count in dealing.listed().items() if ("sanitizer" in test) == sanitizer}
        if not self.cuda:
            return skipped(name, f"{len(tests)} tests need a GPU")
        seconds, limit = self._seconds(name), TEST_SECONDS * self.scale
        return dealing.run_tests(name, tests, self.results.logs, self.where, seconds=seconds, limit=limit)

    def _reproduce(self) -> Part:
        if self.data is None:
            return skipped("reproduce", "no raw images; name them with --data")
        seconds = self._seconds("reproduce")
        arguments = ["--data", str(self.data.resolve()), "--device", self.device, "--seconds", str(seconds - 5)]
        part = self._program("reproduce", "gpu_check.reproducing", *arguments, seconds=seconds)
        rows = read_json(self.results.logs / "reproduce.json")
        part.table = rows.get("table") or part.table[-5:]  # how far it got
        return part


def skipped(name: str, why: str) -> Part:
    """A part that cannot run here."""
    return Part(name, "skipped", detail=why)


def said(log: Path) -> list[str]:
    """What a program printed for readers: neither the command in front of it nor a traceback at its end."""
    text = log.read_text(encoding="utf-8", errors="replace").partition("Traceback (most recent call last)")[0]
    return [line for line in text.splitlines() if line and not line.startswith("$ ")]


def verdict_of(path: Path) -> list[str]:
    """What `pad_fast.verification` has found so far, a line each."""
    verdict = read_json(path)
    if not verdict:
        return []
    lines = [", ".join(f"{name} {value}" for name, value in verdict["subject"].items())]
    for each in verdict["findings"]:
        right = not each["problem"] and each["error"] <= each["tolerance"]
        words = each["problem"] or f"error {each['error']:.1e}, allowed {each['tolerance']:.0e}"
        lines.append(f"{'right' if right else 'WRONG'}  {each['family']}, {each['precision']}: {words}")
    times = f"ours {verdict['kernels_ms']:.2f} ms, torch {verdict['torch_ms']:.2f} ms"
    return [*lines, f"one gradient: {times}" if verdict["kernels_ms"] else "not timed", verdict["failure"]]
