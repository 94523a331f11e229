"""What messages advise, followed: the way out of every error leads out."""

from __future__ import annotations

import ast
import re
import traceback
from functools import cache
from pathlib import Path

import pytest

from pad_fast.errors import PadFastError

from ..support.advice import ENTRIES, Entry
from ..support.paths import ROOT


def raised(entry: Entry, folder: Path) -> PadFastError:
    with pytest.raises(PadFastError) as caught:
        entry.wrong(folder)
    return caught.value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_way_out_leads_out(entry: Entry, tmp_path: Path, shapes_unchecked: None) -> None:
    assert re.search(entry.says, str(raised(entry, tmp_path)), re.DOTALL), str(raised(entry, tmp_path))
    entry.right(tmp_path)


# Messages that say what to do and are not in the tables, by a piece of each, and why.
ELSEWHERE = {
    "need a GPU": (
        "every process takes a GPU of its own",
        "was built without CUDA kernels",
        "but {} is needed; pass {}.to(",
        "this runs on the CPU and on CUDA devices",
    ),
    "need several processes: tests/runtime/test_distributed.py, tests/matching, tests/distillation": (
        "start it without torchrun, or divide the runs",
        "ranks would have nothing to do; use trajectories=",
        "use gradient='exact' for the same result, or split='trajectories'",
        "depends on the batch; use split='trajectories'",
        "without torch.distributed; start a single process",
        "name one on a file system that all machines share",
        "resume from the last checkpoint",
        "start all of them with torchrun",
        "with fewer workers if need be",
    ),
    "run for minutes": ("set TRITON_INTERPRET=1 to",),
    "need another installation": (
        "the benchmarks are in the source tree",
        "pip install huggingface_hub",
        "pip install matplotlib",
        "pip install pyarrow, or use npz",
        "pip install scikit-learn",
        "pip install torchvision",
        "pip install datasets, or give",
        "this data set is read by torchvision, and {}, or pass the images as tensors",
        "install the matching torchvision",
        "pip install timm",
        "pip install {}, or leave log out",
        "this system cannot fork workers",
    ),
    "need the package datasets: tests/data/test_hugging_face.py follows them": (
        "is not understood; write {}NAME or {}PATH",
        "Name a folder that save_to_disk wrote or parquet files",
        "give the two to use as a pair (train, test)",
        "Name it: {}NAME,{}=COLUMN",
        "leave such rows out with dataset.filter()",
    ),
    "need a full disk: tests/experts": ("repeat the command when there is room",),
    "say the same as another, later: distill() checks first": (
        "the score networks diverged with learning rate {}; lower it",
    ),
}
WAY_OUT = re.compile(
    r"[;:.,] (?:or |and )?(?:use|pass|name|lower|raise|choose|give|drop|leave|keep|make|write|convert|call|put|fetch|"
    r"remove|add|start|repeat|resume|delete|train|build|resize|move|install|wrap|distil|evaluate|copy|repair|bring|try|"
    r"open|replace|begin|set|compute|recompute|search|pip|run)\b", re.IGNORECASE
)  # fmt: skip


@cache
def messages() -> dict[tuple[str, int, int], str]:
    """The text of every error that is raised: by file, first and last line."""
    found = {}
    for path in sorted((ROOT / "pad_fast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                found[str(path.relative_to(ROOT)), node.lineno, node.end_lineno or node.lineno] = "".join(
                    text(part) for part in strings(node.exc.args[0])
                )
    return found


def strings(node: ast.expr) -> list[ast.expr]:
    """The pieces that a message is put together of."""
    if isinstance(node, ast.JoinedStr):
        return node.values
    if isinstance(node, ast.BinOp):
        return [*strings(node.left), *strings(node.right)]
    if isinstance(node, ast.IfExp):
        return [*strings(node.body), *strings(node.orelse)]
    return [node]


def text(piece: ast.expr) -> str:
    return piece.value if isinstance(piece, ast.Constant) and isinstance(piece.value, str) else "{}"


@pytest.mark.filterwarnings("ignore")
def test_every_way_out_is_followed(tmp_path: Path, shapes_unchecked: None) -> None:
    """Every message with advice is brought up by an entry, or stands above with the reason why it is not."""
    lines: set[tuple[str, int]] = set()
    for number, entry in enumerate(ENTRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        error: BaseException | None = raised(entry, folder)
        while error is not None:
            for frame in traceback.extract_tb(error.__traceback__):
                if Path(frame.filename).is_relative_to(ROOT / "pad_fast"):
                    lines.add((str(Path(frame.filename).relative_to(ROOT)), frame.lineno or 0))
            error = error.__context__
    advice = {place: said for place, said in messages().items() if WAY_OUT.search(said)}
    assert len(advice) > 150
    followed = {
        (path, first, last)
        for path, first, last in advice
        if any(file == path and first <= line <= last for file, line in lines)
    }
    excused = {piece for pieces in ELSEWHERE.values() for piece in pieces}
    left = {place: said for place, said in advice.items() if place not in followed}
    assert {place: said for place, said in left.items() if not any(piece in said for piece in excused)} == {}
    assert {piece for piece in excused if not any(piece in said for said in left.values())} == set()
