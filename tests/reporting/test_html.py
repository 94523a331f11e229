"""Pages come out of templates: no markup in Python but the charts', and nothing of a user's becomes markup."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from markupsafe import Markup

from pad_fast.reporting.html.charts import Band, Group, Line, band_chart, histogram, line_chart, stacked_histogram
from pad_fast.reporting.html.gallery import Picture, PictureRow, gallery, side_by_side
from pad_fast.reporting.html.page import absent, code, details, empty, hint, page, section, table
from pad_fast.reporting.html.render import part

from ..support.html import Page
from ..support.paths import ROOT, copy_tree
from .test_report import small_png

NAMES = (
    "<script>alert(1)</script>",
    """"'><img src=x onerror=alert(1)>""",
    "a & b &amp; c",
    "{{ 7 * 7 }}{% raw %}",
    "</style></title></table>",
    "żółć 猫 \u202eright to left",
    "name\udcff.png",
    "x" * 500,
)
_TEXT = "a|b|i|p|em|strong|small|div|span|h[1-6]|[uod]l|li|d[td]|t[rdh]|table|tbody|thead|section|nav"
_REST = "figure|figcaption|details|summary|header|main|body|head|html|title|style|img|svg|path|rect"
TAG = re.compile(rf"</?(?:{_TEXT}|{_REST})[\s>/]")


def test_markup_stands_in_templates_and_charts_alone() -> None:
    found = []
    for path in sorted((ROOT / "pad_fast").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.body[0].value) for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
                and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                if TAG.search(node.value):
                    found.append(path.relative_to(ROOT).as_posix())
    assert set(found) == {"pad_fast/reporting/html/charts.py"}


def test_text_is_declared_markup_in_few_places() -> None:
    """A chart in one place, what templates made, and our style sheet; `Markup()` is the empty part."""
    calls: list[str] = []
    for path in sorted((ROOT / "pad_fast").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|__html__|autoescape\s*=\s*False", source), path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).split(".")[-1] == "Markup":
                calls.append(path.name)
    assert calls == ["charts.py", "render.py", "render.py"]
    templates = ROOT / "pad_fast" / "reporting" / "html" / "templates"
    assert not [path.name for path in templates.iterdir() if re.search(r"\|\s*safe|autoescape", path.read_text())]


@pytest.mark.parametrize("name", NAMES)
def test_names_never_become_markup(name: str) -> None:
    png = small_png()
    picture = Picture(png, name, [(name, 0.5)], name, gap=True)
    options = {"x_label": name, "y_label": name, "description": name}
    body = Markup().join(
        [
            table([name, name], [[name, name]], numbers=(1,)),
            hint(name),
            empty(name),
            part("notes", [name]),
            part("state", name, 1, 2),
            part("tiles", [(name, name, name)]),
            part("link", name, "data:,"),
            part("heat", [name, name], [(name, [("50", name, [part("link", name, "data:,")])])]),
            part("multiples", [(name, histogram([1.0, 2.0], **options))]),
            gallery([PictureRow(name, [picture])]),
            side_by_side([name], [PictureRow(name, [picture])]),
            line_chart(
                [Line([1, 2], [1, 2], name), Line([1, 2], [2, 1], name)], limit=1.5, limit_label=name, **options
            ),
            stacked_histogram([Group(name, [1.0]), Group(name, [2.0])], **options),
            band_chart(Band([0, 1], [0.0, 0.0], [1.0, 1.0]), y_span=(0.0, 1.0), **options),
        ]
    )
    source = page(
        name,
        hint(name),
        [section(name, body, name="id"), code(name, name), absent([name]), details(name, {name: name})],
    )
    source.encode("utf-8")
    found = Page(source)
    shown = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    assert found.text.count(shown) >= 20
    assert not {tag for tag, _ in found.elements} & {"script"}
    for tag, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on")]
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
    assert name not in source or "<" not in name
    assert "49" not in found.text or "49" in name


def test_the_style_sheet_is_valid_and_part_of_every_page() -> None:
    css = (ROOT / "pad_fast" / "reporting" / "html" / "style.css").read_text(encoding="utf-8")
    assert css.count("{") == css.count("}") and "</" not in css
    assert css in page("title", Markup(), [])


@pytest.mark.slow
def test_templates_and_style_are_in_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy_tree(source, ".venv", ".git", "build", "*.so", "_build.json")
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    environment = {**os.environ, "CXX": "/nonexistent", "PAD_FAST_CUDA": "0", "PAD_FAST_REQUIRE_EXTENSION": "0"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        # Without the extension they lie in a folder of their own within the wheel.
        names = {f"pad_fast/{name.partition('pad_fast/')[2]}" for name in archive.namelist()}
    folder = ROOT / "pad_fast" / "reporting" / "html"
    wanted = {path.relative_to(ROOT).as_posix() for path in (*folder.rglob("*.html"), *folder.rglob("*.css"))}
    assert len(wanted) == 4 and wanted <= names
