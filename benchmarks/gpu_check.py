"""Everything that needs a GPU, in stages: is it right, how fast is it, and the rest; ten minutes in all, no network.

    python3 -m benchmarks.gpu_check --out results --stage smoke,headline
    make gpu-check OUT=results        # all stages

Uses whatever this Python can import and installs nothing: the sources are copied to build/gpu-check, the extension is
compiled there if pybind11 is found. Every part has a time limit, and what it found is in OUT even when it failed or ran
out of time. The exit status is 0 when all parts succeeded.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "gpu-check"
ENGINE_TESTS = "tests/engines/gpu"
VERDICT = "verdict.json"
NEEDED = ("torch", "triton", "numpy", "safetensors", "PIL", "yaml", "tqdm", "jaxtyping", "pytest")
USEFUL = ("torchvision", "sklearn", "pybind11", "setuptools")
STAGES = {
    "smoke": "the check of pad_fast.verification: every family of kernels against torch, recorded and plain",
    "headline": "one gradient of the published settings beside the plain loop, and its memory",
    "training": "epochs of experts and evaluation networks",
    "matching": "the matching loss by itself",
    "variants": "one gradient in other ways: activations kept, bf16, float32, 8 trajectories, no graphs",
    "tests": "everything marked gpu, dealt out to several processes",
    "scores": "scoring by CUDA, where the extension has it",
    "sanitizer": "compute-sanitizer on the smallest cases",
}
"""In the order in which they run."""

# Seconds. With the copying, and what a part gets to finish in when its time is up, they stay under ten minutes.
LIMITS = {
    "smoke": 60,
    "headline": 120,
    "training": 55,
    "matching": 20,
    "variants": 80,
    "extension": 50,
    "collection": 25,
    "tests": 120,
    "scores": 20,
    "sanitizer": 40,
}
_BENCHMARKS = {
    "headline": ["--suites", "unroll", "--variants", "without"],
    "training": ["--suites", "epochs"],
    "matching": ["--suites", "matching"],
    "variants": ["--suites", "unroll", "--variants", "alone"],
}
GRACE = 5
# Processes that run tests side by side: most of the time goes into compiling kernels, on processor cores. Each has its
# own share of the tests, so that one that takes the device down with it does not take the others' results along.
WORKERS = 12


@dataclass
class Part:
    """Outcome of one part: "ok", "failed", "timed out" or "skipped"."""

    name: str
    state: str
    seconds: float = 0.0
    detail: str = ""
    found: dict[str, Any] = field(default_factory=dict)


def importable(names: tuple[str, ...]) -> dict[str, bool]:
    """Presence of these modules in this Python, by name."""
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


def built_with_cuda() -> bool:
    """Whether the extension in the tree scores on GPUs."""
    try:
        described = json.loads((TREE / "pad_fast" / "_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(described.get("extension") and described.get("cuda"))


def run(name: str, command: list[str], log: Path, *, seconds: float, environment: dict[str, str]) -> Part:
    """Run one command; see :func:`run_all`."""
    return run_all(name, {log: command}, seconds=seconds, environment=environment)


def run_all(name: str, commands: dict[Path, list[str]], *, seconds: float, environment: dict[str, str]) -> Part:
    """Run commands side by side in the copied tree with one time limit; the output of each goes to its log.

    When time is up they are interrupted, so that a test run writes down what it has, and killed if that does not help.
    """
    begin = time.monotonic()
    processes = []
    for log, command in commands.items():
        with log.open("w", encoding="utf-8") as output:
            output.write("$ " + " ".join(command)[:300] + "\n")
            output.flush()
            # A session of its own, so that what the command started ends with it.
            processes.append(
                subprocess.Popen(
                    command, cwd=TREE, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
    late = [process for process in processes if not _ended(process, begin + seconds)]
    for process in late:
        process.send_signal(signal.SIGINT)
    limit = time.monotonic() + GRACE
    for process in late:
        _ended(process, limit)
    for process in processes:
        # Also what a process that has ended left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    bad = sorted({process.returncode for process in processes if process.returncode and process not in late})
    state, detail = "ok", ""
    if bad:
        state, detail = "failed", f"exit status {', '.join(map(str, bad))}"
    if late:
        state, detail = "timed out", f"after {seconds:.0f} s"
    return Part(name, state, time.monotonic() - begin, detail)


def _ended(process: subprocess.Popen[bytes], limit: float) -> bool:
    try:
        process.wait(timeout=max(0.0, limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def collect(which: list[str], *, environment: dict[str, str], seconds: float) -> list[str]:
    """The names of the `gpu` tests, in the order of their files."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-o", "addopts=", *which]
    try:
        done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return []
    return [line for line in done.stdout.splitlines() if "::" in line and " " not in line.partition("[")[0]]


def run_tests(name: str, tests: list[str], out: Path, *, seconds: float, environment: dict[str, str]) -> Part:
    """Run tests dealt out to several processes, and add up what they say."""
    count = max(1, min(WORKERS, os.cpu_count() or 1, len(tests)))
    logs = [out / f"{name}-{worker}.log" for worker in range(count)]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-rfEP", "--tb=short", "-o", "addopts="]
    commands = {log: [*command, *tests[worker::count]] for worker, log in enumerate(logs)}
    part = run_all(name, commands, seconds=seconds, environment=environment)
    for log in logs:
        for key, value in read_tests(log).items():
            part.found[key] = part.found[key] + value if key in part.found else value
    part.found["asked for"] = len(tests)
    if part.state == "ok" and part.found.get("tests", 0) == part.found.get("skipped", 0):
        part.state, part.detail = "failed", "every test was skipped: is there a GPU?"
    if part.state == "ok" and part.found.get("tests", 0) < len(tests):
        part.state, part.detail = "failed", f"only {part.found.get('tests', 0)} of {len(tests)} tests ran"
    return part


def read_tests(log: Path) -> dict[str, Any]:
    """Counts, and the failed tests with their messages, from what pytest -v says while it runs.

    Not from a file that it writes at the end: a process that was killed, or that the device took along, writes none.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    states = re.findall(r"^\S+?::([^\s\[]+(?:\[.*\])?) (PASSED|FAILED|ERROR|SKIPPED)", text, re.MULTILINE)
    messages = dict(re.findall(r"^(?:FAILED|ERROR) \S+?::([^\s\[]+(?:\[.*?\])?) - (.*)$", text, re.MULTILINE))
    counts = collections.Counter(state for _, state in states)
    bad = [f"{name}: {messages.get(name, 'see the log')}" for name, state in states if state in ("FAILED", "ERROR")]
    named = {"failures": "FAILED", "errors": "ERROR", "skipped": "SKIPPED"}
    return {"tests": len(states), **{name: counts[state] for name, state in named.items()}, "failed": bad}


def main() -> int:
    """Run the parts, write OUT, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the time limits (default: 1)")
    parser.add_argument("--device", default="cuda", help="with cpu, benchmarks are tiny (default: cuda)")
    parser.add_argument("--stage", type=_stages, default=list(STAGES), help=f"of {', '.join(STAGES)} (default: all)")
    options = parser.parse_args()
    stages: list[str] = options.stage
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    have = importable(NEEDED + USEFUL)
    report: dict[str, Any] = {"python": platform.python_version(), "importable": have, "stages": stages}
    parts: list[Part] = []

    def seconds_of(name: str) -> float:
        return float(LIMITS[name] * options.scale)

    def note(part: Part) -> None:
        parts.append(part)
        report["parts"] = [asdict(part) for part in parts]
        (out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{part.name}: {part.state} {part.detail} ({part.seconds:.0f} s)", flush=True)

    missing = [name for name in NEEDED if not have[name]]
    note(Part("modules", "failed" if missing else "ok", detail=f"missing: {', '.join(missing)}" if missing else ""))
    copy_sources()
    environment = {**os.environ, "PYTHONPATH": str(TREE), "PYTHONUNBUFFERED": "1"}
    for golden in (ROOT / "shared" / "golden", ROOT.parent / "shared" / "golden"):
        if golden.is_dir():
            environment.setdefault("PAD_FAST_GOLDEN", str(golden))

    def smoke() -> None:
        command = [sys.executable, "-m", "pad_fast.verification", options.device, str(out / VERDICT)]
        interpreted = {"TRITON_INTERPRET": "1"} if options.device == "cpu" else {}
        log, given = out / "smoke.log", {**environment, **interpreted}
        part = run("smoke", command, log, seconds=seconds_of("smoke"), environment=given)
        wrong = [line for line in verdict_of(out) if line.startswith("WRONG")]
        if wrong:
            part.state, part.detail = "failed", wrong[0]
        note(part)

    def benchmark(stage: str) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(out / f"{stage}.json")]
        command += ["--device", options.device, "--minutes", str(seconds_of(stage) / 60 - 0.1), *_BENCHMARKS[stage]]
        if options.device == "cpu":
            command += ["--backend", "autograd", "--tiny", "--rounds", "2"]
        note(run(stage, command, out / f"{stage}.log", seconds=seconds_of(stage), environment=environment))

    def extension() -> None:
        if not (have["pybind11"] and have["setuptools"]):
            note(Part("extension", "skipped", detail="no pybind11; nothing but scores needs it"))
            return
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        seconds = seconds_of("extension")
        built = run("extension", command, out / "extension.log", seconds=seconds, environment=environment)
        built.found = {"library": [path.name for path in (TREE / "pad_fast").glob("_C*.so")]}
        if not built.found["library"]:
            built.state = "skipped"
            built.detail += " no extension; nothing but scores needs it"
        note(built)

    def scores() -> None:
        if options.device != "cuda" or not built_with_cuda():
            note(Part("scores", "skipped", detail="no CUDA code in the extension (no nvcc?), or no GPU asked for"))
            return
        command = [sys.executable, "-m", "benchmarks.scoring", "--parts", "cuda", "--json", str(out / "scores.json")]
        note(run("scores", command, out / "scores.log", seconds=seconds_of("scores"), environment=environment))

    if "smoke" in stages:
        smoke()
    for stage in _BENCHMARKS:
        if stage in stages:
            benchmark(stage)
    if {"tests", "scores"} & {*stages}:
        extension()
    if have["pytest"] and {"tests", "sanitizer"} & {*stages}:
        tests = collect(["tests"], environment=environment, seconds=seconds_of("collection"))
        sanitized = [test for test in tests if "sanitizer" in test]
        # The engine's first, then those of the kernels and scores.
        rest = sorted({*tests} - {*sanitized}, key=lambda test: (not test.startswith(ENGINE_TESTS), tests.index(test)))
        rest = rest or [ENGINE_TESTS]  # without their names, at least all of those in one process
        if "tests" in stages:
            note(run_tests("tests", rest, out, seconds=seconds_of("tests"), environment=environment))
        if "sanitizer" in stages and sanitized:
            note(run_tests("sanitizer", sanitized, out, seconds=seconds_of("sanitizer"), environment=environment))
    if "scores" in stages:
        scores()
    summary = summarise(parts, out)
    (out / "summary.txt").write_text(summary, encoding="utf-8")
    print(summary)
    return 0 if all(part.state in ("ok", "skipped") for part in parts) else 1


def _stages(text: str) -> list[str]:
    """Names of :data:`STAGES`, in their order."""
    wanted = text.split(",")
    for name in wanted:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"there is no stage {name!r}; there are {', '.join(STAGES)}")
    return [name for name in STAGES if name in wanted]


def verdict_of(out: Path) -> list[str]:
    """What the smoke stage has found so far, a line each."""
    try:
        verdict = json.loads((out / VERDICT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    lines = [", ".join(f"{name} {value}" for name, value in verdict["subject"].items())]
    for each in verdict["findings"]:
        right = not each["problem"] and each["error"] <= each["tolerance"]
        said = each["problem"] or f"error {each['error']:.1e}, allowed {each['tolerance']:.0e}"
        lines.append(f"{'right' if right else 'WRONG'}  {each['family']}, {each['precision']}: {said}")
    times = f"ours {verdict['kernels_ms']:.2f} ms, torch {verdict['torch_ms']:.2f} ms"
    return [*lines, f"one gradient: {times}" if verdict["kernels_ms"] else "not timed", verdict["failure"]]


def summarise(parts: list[Part], out: Path) -> str:
    """The parts, the failed tests, and the tables."""
    lines = [f"{part.name:<14}{part.state:<11}{part.seconds:>6.0f} s  {part.detail}" for part in parts]
    for part in parts:
        if "failed" in part.found:
            counts = (f"{part.found[name]} {name}" for name in ("tests", "failures", "errors", "skipped"))
            asked = f" ({part.found['asked for']} asked for)"
            lines += ["", f"{part.name}: " + ", ".join(counts) + asked, *part.found["failed"]]
    errors = [line for log in sorted(out.glob("tests-*.log")) for line in log.read_text("utf-8").splitlines()]
    lines += ["", *(line for line in errors if line.startswith("error ")), "", *verdict_of(out)]
    for log in (f"{part.name}.log" for part in parts if part.name in (*_BENCHMARKS, "scores")):
        if (out / log).exists():
            lines += ["", *(out / log).read_text(encoding="utf-8").splitlines()[1:]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
