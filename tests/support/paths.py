"""The repository's folder, and copies of it."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_tree(target: Path, *left_out: str) -> None:
    """Copy the repository without what these patterns name anywhere in it, and without the runs/ in its root.

    `pad_fast/runs` is a package, which a pattern "runs" would take away.
    """
    patterns = shutil.ignore_patterns(*left_out)

    def skipped(folder: str, names: list[str]) -> set[str]:
        return patterns(folder, names) | ({"runs"} if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, target, ignore=skipped)
