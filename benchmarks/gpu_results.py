"""Rows of `benchmarks.gpu`: ratios, the table, and what was asked for beside what was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_cases import FLAT, MOST_MIB, TARGETS


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
    """Aligned text."""
    head = f"{'case':<20}{'rival':<28}{'T':>5}{'ms':>10}{'min..max':>20}{'ms/step':>9}{'x plain':>9}{'MiB':>9}  error"
    lines = [head]
    for row in rows:
        text = f"{row['case']:<20}{row['rival']:<28}{row['steps']:>5}"
        if row["status"] != "ok":
            lines.append(text + f"  {row['status']}" + (f": {row['reason']}" if "reason" in row else ""))
            continue
        ms, spread = row["ms"], f"{row['ms']['min']:.2f}..{row['ms']['max']:.2f}"
        faster = f"{row['times_faster']:.1f}" if "times_faster" in row else ""
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        text += (
            f"{ms['median']:>10.2f}{spread:>20}{row['ms_per_step']:>9.3f}{faster:>9}{row['peak_mib']:>9.0f}  {error}"
        )
        lines.append(text)
    return "\n".join(lines)


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
