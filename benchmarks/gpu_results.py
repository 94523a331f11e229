"""Rows of `benchmarks.gpu`: ratios, the table, and what was asked for beside what was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_cases import FLAT, MOST_MIB, SAME, STRONGEST, TARGETS


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Speedup per step over the yardstick of the same case, which may have had to take fewer steps."""
    yardsticks = {
        (row["suite"], row["case"]): row["ms_per_step"]
        for row in rows
        if row["status"] == "ok" and row["error"] is None
    }
    for row in rows:
        base = yardsticks.get((row["suite"], row["case"]))
        if row["status"] == "ok" and row["error"] is not None and base is not None:
            trajectories = 8 if "8 trajectories" in row["rival"] else 1
            row["times_faster"] = base / row["ms_per_step"] * trajectories
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned text: errors in full float32, as timed, and of plain torch in the precision that is timed."""
    head = f"{'case':<20}{'rival':<40}{'T':>5}{'ms':>10}{'min..max':>20}{'ms/step':>9}{'x plain':>9}{'MiB':>9}"
    lines = [head + f"{'error':>9}{'as timed':>10}{'plain':>9}"]
    for row in rows:
        text = f"{row['case']:<20}{row['rival']:<40}{row['steps']:>5}"
        if row["rival"] == "-":  # of a whole process, whose name may be long
            text = f"{row['case']:<65}"
        if row["status"] != "ok":
            lines.append(text + f"  {row['status']}" + (f": {row['reason']}" if "reason" in row else ""))
            continue
        ms, spread = row["ms"], f"{row['ms']['min']:.2f}..{row['ms']['max']:.2f}"
        faster = f"{row['times_faster']:.1f}" if "times_faster" in row else ""
        timed = row.get("as_timed", {})
        errors = [row["error"], timed.get("error"), timed.get("plain")]
        error, as_timed, plain = ("" if error is None else f"{error:.1e}" for error in errors)
        text += f"{ms['median']:>10.2f}{spread:>20}{row['ms_per_step']:>9.3f}{faster:>9}{row['peak_mib']:>9.0f}"
        lines.append(text + f"{error:>9}{as_timed:>10}{plain:>9}")
    return "\n".join(lines)


def strongest(rows: list[dict[str, Any]], name: str) -> tuple[str, float] | None:
    """The fastest form of the plain side of a case, and how many times faster than it ours is.

    Both were measured against the eager loop of their own process, and what is compared are these ratios. None where
    ours or all forms but the eager loop are missing.
    """
    measured = [
        row
        for row in rows
        if SAME.get(row["case"], row["case"]) == name and row["status"] == "ok" and row.get("times_faster") is not None
    ]
    ours = [row["times_faster"] for row in measured if row["rival"] == "ours" and row["case"] == name]
    ours += [row["times_faster"] for row in measured if row["rival"] == "ours, together"]
    rivals = {row["rival"]: row["times_faster"] for row in measured if row["rival"].startswith("plain")}
    if not ours or not rivals:
        return None
    rivals["the eager loop"] = 1.0
    best = max(rivals, key=lambda rival: rivals[rival])
    return best, ours[0] / rivals[best]


def against_strongest(rows: list[dict[str, Any]]) -> list[str]:
    """Ours beside the strongest form of the plain side, a line for each target."""
    return [_against_strongest(rows, name) for name in TARGETS]


def _against_strongest(rows: list[dict[str, Any]], name: str) -> str:
    found = strongest(rows, name)
    asked = f"at least {STRONGEST} asked for"
    if found is None:
        return f"{name}: strongest rival: not measured ({asked})"
    met = "met" if found[1] >= STRONGEST else "missed"
    return f"{name}: strongest rival: {found[0]}, ratio {found[1]:.1f} ({asked}): {met}"


def verdict(rows: list[dict[str, Any]]) -> str:
    """Targets beside measurements, line by line."""
    ours = {row["case"]: row for row in rows if row["rival"] == "ours" and row["status"] == "ok"}
    lines = []
    for name, target in TARGETS.items():
        faster = ours.get(name, {}).get("times_faster")
        if faster is None:
            lines.append(f"{name}: not measured, {target} times faster asked for")
        else:
            lines.append(
                f"{name}: {faster:.1f} times faster, {target} asked for: {'met' if faster >= target else 'missed'}"
            )
        lines.append(_against_strongest(rows, name))
    trained = dict.fromkeys(row["case"] for row in rows if row.get("suite") == "epochs")
    lines += [_against_strongest(rows, name) for name in trained if strongest(rows, name)]
    if all(name in ours for name in FLAT):
        short, long = (ours[name] for name in FLAT)
        # Vectors of the steps in between are what may grow.
        flat = long["peak_mib"] <= 1.1 * short["peak_mib"] + 2 * (long["steps"] - short["steps"]) * 1.3
        met = "met" if flat and long["peak_mib"] <= MOST_MIB else "missed"
        peaks = ", ".join(f"{row['peak_mib']:.0f} MiB at T={row['steps']}" for row in (short, long))
        lines.append(f"batch 1000: {peaks}, at most {MOST_MIB} and flat asked for: {met}")
    else:
        lines.append("batch 1000: memory not measured")
    return "\n".join(lines)
