"""The tables of the documents, out of the results that are kept in benchmarks/results.

    python -m benchmarks.report --update README.md docs/benchmarks.md docs/scoring.md docs/scaling.md
    python -m benchmarks.report --check README.md docs/*.md

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything between them is written anew. Below each
table but the README's stand the command and the machine it comes from.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Content, load

_TABLE = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def source(content: Content, rows: Sequence[Content] = ()) -> str:
    """Origin of a table: the commands of its rows, and the machine."""
    machine = content["machine"]
    hardware = f"{machine['cpu']} ({machine['threads']} threads, {machine['cpu_instructions']})"
    commands = dict.fromkeys(row.get("command", content["command"]) for row in rows or [content])
    typed = "; ".join(f"`{command}`" for command in commands)
    return f"\n{typed}\n{hardware}, torch {machine['torch']}, commit {machine['commit']}.\n"


def spread(taken: dict[str, Any]) -> str:
    """Median and range."""
    return f"{taken['median']:.4g} ({taken['min']:.4g}..{taken['max']:.4g})"


def ratio(row: Content, against: str) -> str:
    """Speedup over a rival, where it took part."""
    found = row.get(f"times_faster_than_{against}")
    return f"{found['median']:.2f}" if found else ""


def mebibytes(value: float | None) -> str:
    """None was not measured; NaN is a process that did not survive."""
    if value is None:
        return ""
    return f"{value:.0f}" if value == value else "out of memory"


OURS = "cpu high, recompute"
# Results of the same benchmark by kind of processor.
PROCESSORS = ("unroll-cpu", "unroll-cpu-avx512", "unroll-cpu-avx2")


def readme() -> str:
    """How many times faster one gradient is, by kind of processor and batch, and its memory."""
    rows = []
    for content in map(load, PROCESSORS):
        ours = [row for row in content["rows"] if (row["rival"], row["mask"]) == (OURS, "none")]
        shortest = {row["batch"]: row for row in sorted(ours, key=lambda row: -row["steps"])}
        cells = [
            " / ".join(ratio(shortest[batch], f"plain loop{kind}") for kind in ("", ", tuned"))
            for batch in (10, 100, 256)
        ]
        rows.append([processor(content), *cells])
    weighed = {
        row["rival"]: row["peak_mib"]
        for row in load(PROCESSORS[0])["memory"]
        if row["batch"] == 100 and row["steps"] == 20
    }
    plain, tuned, peak = (mebibytes(weighed[rival]) for rival in ("plain loop", "plain loop, tuned", OURS))
    return markdown(
        [
            f"times faster (at T = 20, batch 100: {peak} MiB, loops {plain} and {tuned})",
            "batch 10",
            "batch 100",
            "batch 256",
        ],
        rows,
    )


def processor(content: Content) -> str:
    machine = content["machine"]
    return f"{machine['cpu']}, {machine['threads']} cores, {machine['cpu_instructions']}"


def unroll_processors() -> str:
    """The same engine by kind of processor, beside what its products alone take at the rate of torch's own."""
    contents = [
        content for content in map(load, PROCESSORS) if any("products_ms_per_step" in r for r in content["rows"])
    ]
    rows = [
        [processor(content), row["rival"], str(row["batch"]), str(row["steps"]), spread(row["ms_per_step"])]
        + [ratio(row, against) for against in ("plain loop", "plain loop, tuned")]
        + [f"{row['products_ms_per_step']:.1f}" if "products_ms_per_step" in row else ""]
        for content in contents
        for row in content["rows"]
    ]
    header = ["processor", "rival", "batch", "T", "ms per step (min..max)", "times faster than the plain loop"]
    table = markdown([*header, "than the tuned loop", "its products alone, ms"], rows)
    return table + "".join(source(content, content["rows"]) for content in contents)


def unroll_time() -> str:
    content = load("unroll-cpu")
    rows = [
        [row["rival"], str(row["batch"]), str(row["steps"]), row["mask"], spread(row["ms_per_step"])]
        + [ratio(row, against) for against in ("plain loop", "plain loop, tuned")]
        + ["" if row["error"] is None else f"{row['error']:.0e}"]
        for row in content["rows"]
    ]
    header = ["rival", "batch", "T", "mask", "ms per step (min..max)", "times faster than the plain loop"]
    return markdown([*header, "than the tuned loop", "error of the image gradient"], rows) + source(
        content, content["rows"]
    )


def unroll_memory() -> str:
    content = load("unroll-cpu")
    rows = [[r["rival"], str(r["batch"]), str(r["steps"]), mebibytes(r["peak_mib"])] for r in content["memory"]]
    grown = [
        [row["rival"], str(row["batch"]), f"{row['from']} to {row['to']}", f"{row['mib_per_step']:.2f}"]
        for row in content["growth"]
    ]
    first = markdown(["rival", "batch", "T", "peak MiB above the import"], rows)
    return (
        first
        + "\n"
        + markdown(["rival", "batch", "T", "MiB that one more step costs"], grown)
        + source(content, content["memory"])
    )


def scoring() -> str:
    content = load("scoring-cpu")
    timed = [row for row in content["rows"] if "ms" in row]
    rows = [
        [row["part"], row["size"], row["rival"], spread(row["ms"]), f"{row['ours_is_times_faster']['median']:.3g}"]
        for row in timed
    ]
    header = ["", "rows x classes", "", "ms (min..max)", "ours is times faster"]
    return markdown(header, rows) + source(content, timed)


def scoring_memory() -> str:
    content = load("scoring-cpu")
    weighed = [row for row in content["rows"] if "peak_mib" in row]
    rows = [[row["size"], row["rival"], f"{row['peak_mib']:.1f}"] for row in weighed]
    return markdown(["part, rows x classes", "", "MiB above the inputs"], rows) + source(content, weighed)


def training() -> str:
    content = load("training-cpu")
    rows = [
        [
            row["suite"],
            row["rival"],
            spread(row["seconds"]),
            ratio(row, "plain torch"),
            ratio(row, "plain torch, tuned"),
        ]
        for row in content["rows"]
    ]
    header = ["", "rival", "seconds per epoch (min..max)", "times faster than plain torch", "than tuned torch"]
    return markdown(header, rows) + source(content)


def augmentation() -> str:
    content = load("augmentation-cpu")
    rows = [
        [row["operation"], row["draws"], str(row["batch"]), row["rival"], spread(row["ms"]), ratio(row, "plain torch")]
        for row in content["rows"]
    ]
    header = ["operation", "draws", "batch", "", "ms (min..max)", "times faster than plain torch"]
    return markdown(header, rows) + source(content)


def end_to_end() -> str:
    content = load("end_to_end-cpu")
    rows = []
    for row in content["rows"]:
        stages = ", ".join(f"{name} {cost['seconds']:.1f}" for name, cost in row["stages"].items())
        accuracy = row["accuracy"]
        reached = [f"{accuracy[name]['mean']:.1f} ± {accuracy[name]['std']:.1f}" for name in ("PAD", "random real")]
        rows.append([row["rival"], str(row["ipc"]), f"{row['seconds']:.1f}", stages, *reached])
    header = ["backend", "IPC", "seconds", "of these", "accuracy in %", "of random real images"]
    return markdown(header, rows) + source(content)


def published() -> str:
    from benchmarks.published import table

    content = load("published")
    return markdown(*table(content["rows"])) + source(content)


def fidelity(name: str) -> str:
    """TESLA's gradient beside the exact one."""
    from benchmarks.fidelity import show

    content = load(name)
    return show(content["rows"]) + "\n" + source(content)


def criteria(part: str, name: str) -> str:
    """A table of what each criterion makes of the same time."""
    from benchmarks.criteria import TABLES as PARTS

    content = load(f"criteria-{name}")
    return markdown(*PARTS[part](content["rows"])) + source(content, [r for r in content["rows"] if r["part"] == part])


def reproduction(setting: str) -> str:
    """A published setting beside what is printed, and the way there."""
    from benchmarks.reproduce_table import accuracy_table, curve_table, words_of

    content = load(f"reproduce-{setting}")
    tables = [markdown(*accuracy_table(content)), markdown(*curve_table(content)), words_of(content)]
    return "\n".join(tables) + source(content)


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    "unroll-processors": unroll_processors,
    "unroll-time": unroll_time,
    "unroll-memory": unroll_memory,
    "scoring": scoring,
    "scoring-memory": scoring_memory,
    "training": training,
    "augmentation": augmentation,
    "end-to-end": end_to_end,
    "published": published,
    "fidelity": partial(fidelity, "fidelity-cpu"),
    "fidelity-cifar": partial(fidelity, "fidelity-cifar10-cpu"),
    "criteria-digits": partial(criteria, "compare", "digits"),
    "criteria-digits-filters": partial(criteria, "filters", "digits"),
    "criteria-digits-search": partial(criteria, "search", "digits"),
    "criteria-cifar": partial(criteria, "compare", "cifar10"),
    "criteria-cifar-search": partial(criteria, "search", "cifar10"),
    "criteria-cifar-filters": partial(criteria, "filters", "cifar10"),
    "reproduce-digits-ipc1": partial(reproduction, "digits-ipc1"),
}


def updated(text: str) -> str:
    """A document with its tables written anew.

    Raises:
        KeyError: it asks for a table that is not one of ours.
    """
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Update or check documents; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--update", nargs="+", type=Path, metavar="FILE", help="write their tables anew")
    which.add_argument("--check", nargs="+", type=Path, metavar="FILE", help="only say whether that would change them")
    options = parser.parse_args(argv)
    stale = []
    for path in options.update or options.check:
        text = path.read_text(encoding="utf-8")
        new = updated(text)
        if new != text:
            stale.append(path)
            if options.update:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'updated' if options.update else 'out of date'}: {', '.join(map(str, stale))}")
    return int(bool(stale) and not options.update)


if __name__ == "__main__":
    sys.exit(main())
