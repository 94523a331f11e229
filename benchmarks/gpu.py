"""On a GPU: iterations, the matching loss, and training epochs against plain torch; milliseconds and peak memory.

    python -m benchmarks.gpu --json benchmarks/results/gpu.json
    python -m benchmarks.gpu --suites unroll --minutes 3
    python -m benchmarks.gpu --variants rivals

Every case runs in a process of its own, in which the rivals take turns: plain torch, the yardstick, with ours, with one
more variant of ours, or with one of the plain side's stronger forms. Convolutions have the same precision on both
sides, TF32 unless a row says otherwise. What is timed is compared with full float32 before its row is written. Where a
plain loop runs out of memory its row says so, and it is measured with fewer steps, which gives its time per step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.gpu_cases import (
    COMPILED,
    EPOCH_TOLERANCE,
    EPOCHS,
    MATCHING_TOLERANCE,
    OPTIONAL,
    RIVALS,
    SUITES,
    TINY,
    TINY_EPOCHS,
    UNROLL_TOLERANCE,
    UNROLLS,
    VARIANTS,
    EpochCase,
    Plain,
    UnrollCase,
)
from benchmarks.gpu_epochs import Epochs, epoch_rivals, epochs_as_timed
from benchmarks.gpu_results import table, verdict, with_ratios
from benchmarks.gpu_timing import Device, Rival, recorded, torch_settings
from benchmarks.gpu_unroll import YARDSTICKS, Unroll, fewer_steps, unroll_rivals
from pad_fast.matching import normalized_distance

_VARIANT = " | "  # between a case's name and a variant's or a rival's
# Rows of a process that another one has, too.
_SHARED = (YARDSTICKS["tf32"], f"{YARDSTICKS['tf32']}, fewer steps", "plain torch")


def measure(device: Device, rivals: list[Rival], *, rounds: int, seconds: float, warm: int = 3) -> None:
    """Warm up and watch the memory of each alone, then let them take turns, `rounds` times or until time is up.

    Args:
        warm: runs after which everything is compiled and recorded: plainly, recorded, replayed; more where a run has
            work that comes once in it, which is recorded later.
    """
    begin = time.monotonic()
    for rival in rivals:
        device.clean()
        before = device.reserved()
        try:
            with rival.within():
                for _ in range(warm):
                    device.time(rival.run)
                    if time.monotonic() - begin > seconds:
                        break
        except torch.OutOfMemoryError:
            rival.out_of_memory = True
        rival.peak = device.peak() - before
    device.clean()
    left, before_timing = [rival for rival in rivals if not rival.out_of_memory], recorded()
    for round_ in range(rounds):
        for rival in left:
            with rival.within():
                try:
                    rival.milliseconds.append(device.time(rival.run))
                except torch.OutOfMemoryError:
                    rival.out_of_memory = True
        if round_ and time.monotonic() - begin > seconds:
            break
    if recorded() != before_timing:
        raise SystemExit("CUDA graphs were recorded while they were timed")


def run_unroll(
    case: UnrollCase, device: Device, backend: str, *, rounds: int, seconds: float, variant: str = "ours"
) -> list[Rival]:
    """Plain loop and one variant of ours or one rival; where a loop does not fit, also with fewer steps."""
    precision = VARIANTS[variant].precision if variant in VARIANTS else "tf32"
    problem = Unroll(case, device, backend, precision)
    entered = unroll_rivals(problem, variant)
    refuse_wrong(entered, UNROLL_TOLERANCE)
    for rival, how in list(entered.items()):
        fewer = fewer_steps(problem, rival, how, device.clean) if isinstance(how, Plain) and rival.runs else None
        if fewer is not None:
            entered[fewer] = how
    device.clean()
    measure(device, [rival for rival in entered if rival.runs], rounds=rounds, seconds=seconds)
    device.clean()
    for rival, how in entered.items():
        if rival.milliseconds:
            rival.timed = problem.as_timed(rival, how)
    refuse_wrong_as_timed(entered)
    return list(entered)


def run_matching(device: Device, backend: str, *, trajectories: int, dropped: bool, rounds: int) -> list[Rival]:
    """The distance and its three gradients on `[K, P]`, by the formula and by kernels; ten of them a run."""
    torch.manual_seed(0)
    count = 320_010
    start, end, target = (torch.randn(trajectories, count).to(device.device) for _ in range(3))
    grad = torch.linspace(1, 2, trajectories, device=device.device)
    first_kept, smallest = (0, count // 2) if dropped else (count // 2, 0)

    def formula() -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in (end, start, target)]
        distance = normalized_distance(leaves[0], leaves[1], leaves[2], first_kept=first_kept, dropped=smallest)
        return torch.autograd.grad(distance, leaves, grad)

    def kernels() -> tuple[Tensor, ...]:
        from pad_fast.kernels import matching

        vectors = (end, start, target)
        matching.distance(*vectors, first_kept=first_kept, dropped=smallest)
        found = matching.distance_gradients(*vectors, grad, first_kept=first_kept, dropped=smallest)
        return tuple(gradient for gradient in found if gradient is not None)  # by default all three are wanted

    rivals = [Rival("formula", lambda: [formula() for _ in range(10)], steps=10)]
    if backend == "triton":
        rivals.append(Rival("ours", lambda: [kernels() for _ in range(10)], steps=10))
        pairs = zip(kernels(), formula(), strict=True)
        rivals[1].check = max(harness.relative_error(ours, truth) for ours, truth in pairs)
    refuse_wrong(rivals, MATCHING_TOLERANCE)
    measure(device, rivals, rounds=rounds, seconds=5)
    return rivals


def run_epochs(case: EpochCase, device: Device, backend: str, *, rounds: int, variant: str = "ours") -> list[Rival]:
    """Epochs of GSAM on hard labels (experts) or of SGD with momentum on soft ones (evaluation), with DSA."""
    problem = Epochs(case, device, backend)
    rivals, truth = epoch_rivals(problem, variant)
    refuse_wrong(rivals, EPOCH_TOLERANCE)
    measure(device, [rival for rival in rivals if rival.runs], rounds=rounds, seconds=10, warm=6)
    epochs_as_timed(problem, rivals, truth)
    refuse_wrong_as_timed(rivals)
    return rivals


def refuse_wrong(rivals: Iterable[Rival], tolerance: float) -> None:
    """No speed of anything that computes something else."""
    for rival in rivals:
        if rival.check is not None:
            harness.require(rival.check, tolerance, rival.name)


def refuse_wrong_as_timed(rivals: Iterable[Rival]) -> None:
    """No speed of anything that computes something else in the precision, the steps and the way that were timed."""
    for rival in rivals:
        if rival.timed is not None and rival.timed.tolerance is not None:
            harness.require(rival.timed.error, rival.timed.tolerance, f"{rival.name} as it is timed")


def cases(suites: list[str], *, tiny: bool) -> list[tuple[str, str]]:
    """(suite, case) in the order in which they run; behind a case's name the variant of ours, where it has several.

    Each has a process of its own: more variants in one would drop each other's recordings while they take turns.
    """
    unrolls = TINY if tiny else UNROLLS
    named = {
        "unroll": [
            *unrolls,
            *(f"{name}{_VARIANT}{variant}" for name, case in unrolls.items() for variant in case.more),
        ],
        "matching": [f"{kind} mask, K={k}" for kind in ("depth", "loss") for k in ((1,) if tiny else (1, 8))],
        "epochs": list(EPOCHS),
    }
    return [(suite, case) for suite in suites for case in named[suite]]


def rival_cases(suites: list[str], *, tiny: bool) -> list[tuple[str, str]]:
    """(suite, case) of the plain side's stronger forms, the rival behind the case's name.

    Each has a process of its own, so that what its compiler, its graphs and cuDNN's trials leave behind is not ours.
    """
    unrolls, epochs = (TINY, TINY_EPOCHS) if tiny else (UNROLLS, EPOCHS)
    against = {
        "unroll": {name: case.against for name, case in unrolls.items()},
        "epochs": {name: case.against for name, case in epochs.items()},
        "matching": {},
    }
    return [
        (suite, f"{name}{_VARIANT}{rival}")
        for suite in suites
        for name, rivals in against[suite].items()
        for rival in rivals
    ]


def chosen(suites: list[str], variants: str, *, tiny: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(suite, case) of ours, and of its rivals, by the choice of `--variants`."""
    ours, rivals = cases(suites, tiny=tiny), rival_cases(suites, tiny=tiny)
    if variants == "rivals":
        return [], rivals
    if variants == "with":
        return ours, rivals
    return [(suite, name) for suite, name in ours if (_VARIANT in name) == (variants == "alone")], []


def run_case(suite: str, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one case in this process."""
    device = Device(options.device)
    name, _, variant = name.partition(_VARIANT)
    if suite == "unroll":
        case = (TINY if options.tiny else UNROLLS)[name]
        if options.compile:
            run_once(case, device, options.backend, variant)
            return []
        rivals = run_unroll(
            replace(case, compiled=False) if variant else case,  # timed beside "ours"
            device,
            options.backend,
            rounds=options.rounds,
            seconds=options.case_seconds,
            variant=variant or "ours",
        )
        described = {"batch": case.batch}
    elif suite == "matching":
        trajectories = int(name.rpartition("=")[2])
        rivals = run_matching(
            device,
            options.backend,
            trajectories=trajectories,
            dropped=name.startswith("loss"),
            rounds=options.rounds,
        )
        described = {"batch": trajectories}
    else:
        epochs = (TINY_EPOCHS if options.tiny else EPOCHS)[name]
        if options.compile:
            for together in {1, epochs.networks}:
                Epochs(epochs, device, options.backend).ours(together)
            return []
        rivals = run_epochs(epochs, device, options.backend, rounds=options.rounds, variant=variant or "ours")
        described = {"batch": epochs.images, "networks": epochs.networks}
    rows = with_ratios([{"suite": suite, "case": name, **described, **rival.row()} for rival in rivals])
    # The yardstick of a variant is the one of its own process, and shown where "ours" is, unless its precision differs.
    return [row for row in rows if row["rival"] not in _SHARED] if variant else rows


def optional(name: str) -> bool:
    """Whether a case may fail: one that needs a compiler which is not ours."""
    case, _, variant = name.partition(_VARIANT)
    return case in OPTIONAL or (variant in RIVALS and RIVALS[variant].compiled)


def to_compile(named: list[tuple[str, str]], backend: str) -> list[tuple[str, str]]:
    """What of these cases is compiled ahead: our kernels, and the steps of the rivals that have them compiled."""
    found = set()
    for suite, name in named:
        case, _, variant = name.partition(_VARIANT)
        if variant in RIVALS:
            found |= {(suite, name)} if RIVALS[variant].compiled else set()
        elif suite != "matching" and backend == "triton":
            found.add((suite, case))
    return sorted(found)


@contextmanager
def kept_errors(results: Path | None) -> Iterator[IO[bytes]]:
    """Where processes write what they have to say, in full: a file beside the results, or one that nobody keeps."""
    if results is None:
        with tempfile.TemporaryFile() as stream:
            yield stream
    else:
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.with_suffix(".stderr.log").open("a+b") as stream:
            yield stream


def compile_kernels(
    arguments: list[str], named: list[tuple[str, str]], seconds: float, results: Path | None = None
) -> None:
    """Some steps of every case side by side, so that Triton's and inductor's caches on disk have what cases will run.

    Compiling takes processor cores and minutes; one case at a time it would be done with one core, and be timed out.
    """
    processes = []
    for suite, name in named:
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--compile", "--worker", suite, name]
        with kept_errors(results) as stream:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream))
    limit = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_once(case: UnrollCase, device: Device, backend: str, variant: str = "") -> None:
    """Everything of ours once, or of a rival, on two steps: what must be compiled is compiled then."""
    problem, steps = Unroll(case, device, backend), min(2, case.steps)
    if not variant:
        for name in ("ours", *case.more):
            for augmented in (False, True):
                problem.ours(VARIANTS[name], steps, augmented=augmented)
            problem.check(VARIANTS[name])
    for rival in [variant] if variant else [COMPILED] if case.compiled else []:
        how = replace(RIVALS[rival], graph=False)
        problem.check(how)
        with torch_settings("tf32", benchmark=True):
            problem.plain(steps, how=how)


def in_process(
    suite: str, name: str, arguments: list[str], seconds: float, results: Path | None = None
) -> list[dict[str, Any]]:
    """Run one case in a process of its own; what goes wrong becomes a row, and stays in full beside the results."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--worker", suite, name]
    failed = {"suite": suite, "case": name, "rival": "-", "steps": 0}
    with kept_errors(results) as stream:
        stream.write(f"== {suite}, {name}\n".encode())
        stream.flush()
        begin = stream.tell()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return [{**failed, "status": "failed", "reason": f"took longer than {seconds:.0f} s"}]
        if done.returncode:
            stream.seek(begin)
            lines = (stream.read().decode(errors="replace") or done.stdout).strip().splitlines() or ["no output"]
            return [{**failed, "status": "failed", "reason": lines[-1]}]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where (default: cuda)")
    parser.add_argument("--backend", default="triton", help="our side's engine (default: triton)")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), help="which (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="start no case after this long (default: 10)")
    parser.add_argument("--case-seconds", type=float, default=15.0, help="stop repeating a case then (default: 15)")
    parser.add_argument(
        "--variants",
        choices=("with", "without", "alone", "rivals"),
        default="with",
        help="ours and its rivals with or without variants, variants of ours alone, or the plain side's stronger forms",
    )
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the program itself")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, metavar=("SUITE", "CASE"), help=argparse.SUPPRESS)
    harness.add_common(parser)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_case(options.worker[0], options.worker[1], options)))
        return
    arguments = ["--device", options.device, "--backend", options.backend, "--rounds", str(options.rounds)]
    arguments += ["--case-seconds", str(options.case_seconds), *(["--tiny"] if options.tiny else [])]
    command = "python -m benchmarks.gpu " + " ".join(arguments)
    if options.device == "cuda" and torch.cuda.is_available():
        print(torch.cuda.get_device_name())
    print(harness.heading(command) + "\n", flush=True)
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []

    def run(named: list[tuple[str, str]]) -> None:
        compile_kernels(arguments, to_compile(named, options.backend), 15 * options.minutes, options.json)
        for suite, name in named:
            left = 60 * options.minutes - (time.monotonic() - begin)
            if left < 5:
                failed = {"suite": suite, "case": name, "rival": "-", "steps": 0}
                rows.append({**failed, "status": "failed", "reason": "no time"})
            else:
                rows.extend(in_process(suite, name, arguments, min(left, 5 * options.case_seconds), options.json))
            write(options.json, command, rows)  # what is there survives whoever stops this program

    ours, rivals = chosen(options.suites, options.variants, tiny=options.tiny)
    run(ours)
    # Where ours failed there is nothing to set its rivals against.
    failed = {(row["suite"], row["case"]) for row in rows if row["status"] == "failed"}
    run([(suite, name) for suite, name in rivals if (suite, name.partition(_VARIANT)[0]) not in failed])
    print(table(rows))
    if options.suites[0] == "unroll" and options.variants in ("with", "without") and not options.tiny:
        print("\n" + verdict(rows))
    if any(row["status"] in ("failed", "not run") and not optional(row["case"]) for row in rows):
        raise SystemExit("some cases failed")


def write(path: Path | None, command: str, rows: list[dict[str, Any]]) -> None:
    """JSON with everything needed to judge it."""
    if path is None:
        return
    gpu = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {"name": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    content = {"suite": "gpu", "command": command, "machine": harness.machine(), "gpu": gpu, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
