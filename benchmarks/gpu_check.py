"""Everything that needs a GPU in one go: the `gpu` tests and the GPU benchmarks, within ten minutes, without a network.

    make gpu-check OUT=results

Uses whatever this Python can import and installs nothing: the sources are copied to build/gpu-check, the extension is
compiled there if pybind11 is found. Every part has a time limit, and what it found is in OUT even when it failed or ran
out of time. The exit status is 0 when all parts succeeded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "gpu-check"
NEEDED = ("torch", "triton", "numpy", "safetensors", "PIL", "yaml", "tqdm", "pytest")
USEFUL = ("torchvision", "sklearn", "pybind11", "setuptools", "xdist")
# Seconds. With the copying, and the ten that a part gets to die in, they stay under ten minutes.
LIMITS = {"extension": 40, "engine tests": 150, "kernel tests": 60, "benchmarks": 310}
# Processes that run tests side by side: most of the time goes into compiling kernels, on processor cores.
WORKERS = 8


@dataclass
class Part:
    """What became of one part: "ok", "failed", "timed out" or "skipped"."""

    name: str
    state: str
    seconds: float = 0.0
    detail: str = ""
    found: dict[str, Any] = field(default_factory=dict)


def importable(names: tuple[str, ...]) -> dict[str, bool]:
    """Which of these modules this Python has."""
    return {name: importlib.util.find_spec(name) is not None for name in names}


def copy_sources() -> None:
    """A tree in which `pad_fast.kernels` lies where imports look for it, without installing anything."""
    shutil.rmtree(TREE, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("pad_fast", "tests", "benchmarks", "csrc"):
        shutil.copytree(ROOT / name, TREE / name, ignore=unwanted)
    shutil.copytree(ROOT / "kernels", TREE / "pad_fast" / "kernels", ignore=unwanted)
    shutil.copytree(ROOT / "kernels", TREE / "kernels", ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, TREE / name)


def run(name: str, command: list[str], log: Path, *, seconds: float, environment: dict[str, str]) -> Part:
    """Run a command in the copied tree with a time limit; its output goes to `log`."""
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        output.write("$ " + " ".join(command) + "\n")
        output.flush()
        # A session of its own, so that what the command started ends with it.
        process = subprocess.Popen(
            command, cwd=TREE, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(timeout=seconds)
            state, detail = ("ok", "") if status == 0 else ("failed", f"exit status {status}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state, detail = "timed out", f"after {seconds:.0f} s"
    return Part(name, state, time.monotonic() - begin, detail)


def read_tests(path: Path) -> dict[str, Any]:
    """Counts, and the names of failed tests, of a JUnit file; empty when there is none (see the log then)."""
    try:
        suite = ElementTree.parse(path).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        return {}
    if suite is None:
        return {}
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [
        f"{case.get('name')}: {(case.find(kind).get('message') or '').splitlines()[:1]}"  # type: ignore[union-attr]
        for case in suite.iter("testcase")
        for kind in ("failure", "error")
        if case.find(kind) is not None
    ]
    return {**counts, "failed": bad}


def main() -> int:
    """Run the parts, write OUT, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the time limits (default: 1)")
    parser.add_argument("--device", default="cuda", help="of the benchmarks; with cpu they are tiny (default: cuda)")
    options = parser.parse_args()
    scale: float = options.scale
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    have = importable(NEEDED + USEFUL)
    report: dict[str, Any] = {"python": platform.python_version(), "importable": have}
    parts: list[Part] = []

    def note(part: Part) -> None:
        parts.append(part)
        report["parts"] = [asdict(part) for part in parts]
        (out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{part.name}: {part.state} {part.detail} ({part.seconds:.0f} s)", flush=True)

    missing = [name for name in NEEDED if not have[name]]
    note(Part("modules", "failed" if missing else "ok", detail=f"missing: {', '.join(missing)}" if missing else ""))
    copy_sources()
    environment = {**os.environ, "PYTHONPATH": str(TREE), "PYTHONUNBUFFERED": "1"}
    golden = ROOT.parent / "shared" / "golden"
    if golden.is_dir():
        environment.setdefault("PAD_FAST_GOLDEN", str(golden))

    if have["pybind11"] and have["setuptools"]:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        # The CUDA sources are scored elsewhere; leaving them out saves most of the time.
        built = run(
            "extension",
            command,
            out / "extension.log",
            seconds=LIMITS["extension"] * scale,
            environment={**environment, "PAD_FAST_CUDA": "0"},
        )
        built.found = {"library": [path.name for path in (TREE / "pad_fast").glob("_C*.so")]}
        if not built.found["library"]:
            built.state = "skipped"
            built.detail += " no extension; nothing here needs it"
        note(built)
    else:
        note(Part("extension", "skipped", detail="no pybind11; nothing here needs it"))

    if have["pytest"]:
        for name, which in (
            ("engine tests", ["tests/test_gpu.py"]),
            ("kernel tests", ["tests", "--ignore", "tests/test_gpu.py"]),
        ):
            file = out / (name.replace(" ", "-") + ".xml")
            command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", *which, "-p", "no:cacheprovider", "-rP"]
            command += ["--tb=short", "-o", "addopts=", f"--junitxml={file}"]
            if have["xdist"]:
                command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
            tested = run(name, command, file.with_suffix(".log"), seconds=LIMITS[name] * scale, environment=environment)
            tested.found = read_tests(file)
            if tested.state == "ok" and tested.found.get("tests", 0) == tested.found.get("skipped", 0):
                tested.state, tested.detail = "failed", "every test was skipped: is there a GPU?"
            note(tested)

    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(out / "gpu.json"), "--device", options.device]
    command += ["--minutes", str(LIMITS["benchmarks"] * scale / 60 - 0.2)]
    if options.device == "cpu":
        command += ["--backend", "autograd", "--tiny", "--rounds", "2"]
    seconds = LIMITS["benchmarks"] * scale
    note(run("benchmarks", command, out / "gpu.log", seconds=seconds, environment=environment))
    summary = summarise(parts, out)
    (out / "summary.txt").write_text(summary, encoding="utf-8")
    print(summary)
    return 0 if all(part.state in ("ok", "skipped") for part in parts) else 1


def summarise(parts: list[Part], out: Path) -> str:
    """The parts, the failed tests, and the benchmarks' table."""
    lines = [f"{part.name:<14}{part.state:<11}{part.seconds:>6.0f} s  {part.detail}" for part in parts]
    for part in parts:
        if "failed" in part.found:
            counts = (f"{part.found[name]} {name}" for name in ("tests", "failures", "errors", "skipped"))
            lines += ["", f"{part.name}: " + ", ".join(counts), *part.found["failed"]]
    try:
        text = (out / "gpu.log").read_text(encoding="utf-8")
        lines += ["", *text.splitlines()[1:]]
    except OSError:
        lines += ["", "no benchmark was run"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
