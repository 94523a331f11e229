"""One HTML file that needs no network, no script and no other file: its frame, its style, and the parts pages share.

It is made for light and dark screens, phones and paper. Colours are CSS variables with a light and a dark set: for
series Okabe and Ito's (2008), which any colour vision tells apart, for layers a ramp.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from ...errors import InputError


def page(title: str, summary: str, sections: Sequence[str], *, refresh: int | None = None) -> str:
    """A whole page of sections; empty ones are left out.

    Args:
        title: headline.
        summary: HTML that goes under the title.
        sections: HTML.
        refresh: seconds after which a browser is to load the page again; None: never.
    """
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n{again}<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<header><h1>{text(title)}</h1>{summary}</header>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, body: str, *, name: str = "") -> str:
    """A section; `body` is HTML, `name` what links on the page call it."""
    label = f' id="{text(name)}"' if name else ""
    return f"<section{label}><h2>{text(heading)}</h2>{body}</section>"


def hint(words: str) -> str:
    """A small line of plain text under something; nothing for no words."""
    return f'<p class="hint">{text(words)}</p>' if words else ""


def empty(words: str) -> str:
    """What stands where there is nothing to show yet; plain text."""
    return f'<p class="empty">{text(words)}</p>'


def sheet(heading: str, png: bytes, description: str) -> str:
    """A section with a contact sheet (a PNG file's bytes); nothing for empty bytes.

    Raises:
        InputError: the bytes are not a PNG file.
    """
    if not png:
        return ""
    width, height = png_size(png)
    # Wide sheets scroll sideways; a phone shrinks them, but not until the class names cannot be read.
    smallest = min(width, max(560, width // 2))
    return section(
        heading,
        f'<div class="scroll sheet" tabindex="0"><img src="{data_url(png)}" width="{width}" '
        f'height="{height}" style="--least:{smallest}px" alt="{text(description)}"></div>',
    )


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG file.

    Raises:
        InputError: the bytes are not a PNG file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise InputError("an image of the page is not a PNG file; pass the bytes png_bytes() returns")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def data_url(png: bytes) -> str:
    """A PNG file as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def details(heading: str, values: Mapping[str, object] | Mapping[str, str]) -> str:
    """A folded section with a table of names and values; nothing where there are none."""
    if not values:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(key)}</th><td>{text(shown(value))}</td></tr>' for key, value in values.items()
    )
    return (
        f"<details><summary><h2>{text(heading)}</h2></summary>"
        f'<div class="scroll"><table class="pairs"><tbody>{rows}</tbody></table></div></details>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of HTML cells; the first of a row is its heading. `numbers` are the columns set flush right."""
    head = "".join(
        f'<th scope="col"{_number(column in numbers)}>{text(name)}</th>' for column, name in enumerate(header)
    )
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td{_number(column in numbers)}>{cell}</td>" for column, cell in enumerate(rest, 1))
        + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(value: object) -> str:
    """A setting as a reader writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value) or "none"
    return str(value)


def text(value: object) -> str:
    """Escaped text; a file name's undecodable bytes become question marks instead of an unwritable page."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _number(flag: bool) -> str:
    return ' class="number"' if flag else ""


_LIGHT = """--paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dbe1; --card: #f4f6f8; --accent: #0b5fb5;
  --pale: #8db4dc; --warn: #b4530a; --c0: #0072b2; --c1: #d55e00; --c2: #00835f; --c3: #b0568f; --c4: #2f95d0;
  --c5: #b57a00; --c6: #4b5560; --c7: #7d5a2c; --still: #b9c2cb; --r0: #440154; --r1: #472f7d; --r2: #3b528b;
  --r3: #2c728e; --r4: #21918c; --r5: #28a077; --r6: #50a548; --r7: #7c981a;"""
_DARK = """--paper: #11151a; --ink: #e7ebf0; --soft: #a3adb8; --rule: #323a43; --card: #1a2027; --accent: #74b5f8;
  --pale: #3f6a96; --warn: #f2a65a; --c0: #5aaee6; --c1: #ff8a4c; --c2: #3ccfa0; --c3: #e39cc6; --c4: #9ad6ff;
  --c5: #ffc247; --c6: #c5ced8; --c7: #d3b27c; --still: #55606b; --r0: #a08ff0; --r1: #7f96ef; --r2: #62a8e6;
  --r3: #4bbbd0; --r4: #4fcbaa; --r5: #76d883; --r6: #aee05c; --r7: #f0e442;"""
_CLASSES = "".join(f".c{n} {{ --c: var(--c{n}); }} .r{n} {{ --c: var(--r{n}); }}\n" for n in range(8))

_STYLE = (
    f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
{_CLASSES}"""
    + """.still { --c: var(--still); }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: .35rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 0 0 .6rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .3rem; }
section, details { margin-top: 2.4rem; }
details { margin-top: 1.4rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
summary { cursor: pointer; }
summary h2 { display: inline; }
a { color: var(--accent); text-underline-offset: .15em; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: .9rem; font-size: .9rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.hint, .empty, .notes { color: var(--soft); font-size: .9rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
.empty { background: var(--card); border-radius: 6px; padding: .7rem .9rem; }
.notes { padding-left: 1.2rem; }
.hidden { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.scroll { overflow-x: auto; }
.state { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .7rem; }
.state progress { flex: 1 1 8rem; max-width: 16rem; height: .55rem; accent-color: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0 0; }
.tiles div { display: flex; flex-direction: column; background: var(--card); border-radius: 8px; padding: .7rem .8rem; }
.tiles dt { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
.tiles dd { margin: auto 0 0; padding-top: .1rem; font-size: 1.2rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles small { font-size: .82rem; font-weight: 400; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: middle; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
.std { color: var(--soft); }
.wide { width: 34%; min-width: 5rem; }
.wide svg { display: block; width: 100%; height: 16px; }
.pairs { margin-top: .8rem; font-size: .88rem; }
.pairs th { font-weight: 400; color: var(--soft); width: 14rem; }
.pairs td { overflow-wrap: anywhere; }
.track { fill: var(--card); }
.bar { fill: var(--accent); }
.whisker { stroke: var(--ink); stroke-width: 2; vector-effect: non-scaling-stroke; }
.swatch { display: inline-block; width: 1.1rem; height: .3rem; background: var(--c); margin-right: .5rem;
  vertical-align: middle; }
.sheet { max-height: 48rem; overflow: auto; background: #fff; border: 1px solid var(--rule); border-radius: 6px; }
.sheet img { display: block; height: auto; margin: 0 auto; image-rendering: pixelated; }
.gallery { position: relative; display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--block)), 1fr)); }
.gallery figure { margin: 0; min-width: 0; }
.gallery figcaption { margin: 0 0 .25rem; font-size: .82rem; color: var(--soft); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; display: block; }
.cells { display: grid; gap: 4px; }
.cell { display: block; cursor: help; border-radius: 3px; }
.cell img { width: 100%; } .side img { width: var(--cell); }
.cell img, .side img { display: block; height: auto; image-rendering: pixelated; border-radius: 3px;
  background: var(--card); box-shadow: 0 0 0 1px var(--still); }
.cell .card { position: absolute; left: 0; right: 0; z-index: 2; margin-top: 4px; padding: .6rem .8rem; display: none;
  background: var(--paper); border: 1px solid var(--rule); border-radius: 6px; box-shadow: 0 4px 14px #0004;
  font-size: .85rem; cursor: default; pointer-events: none; }
.cell:hover .card, .cell:focus .card { display: block; }
.cell:hover, .cell:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.card b { display: block; margin-bottom: .2rem; overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: minmax(3rem, max-content) 1fr 3.2rem; gap: .15rem .6rem;
  align-items: center; max-width: 26rem; font-variant-numeric: tabular-nums; }
.bars i { height: .6rem; border-radius: 2px;
  background: linear-gradient(var(--accent), var(--accent)) 0 0 / var(--p) 100% no-repeat var(--card); }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 11rem; }
.bars em { font-style: normal; text-align: right; color: var(--soft); }
.side { width: auto; font-size: .88rem; }
.side td, .side th { padding: .3rem .7rem .3rem 0; border: 0; }
.side thead th { vertical-align: bottom; max-width: 9rem; overflow-wrap: anywhere; }
.side tbody th { white-space: nowrap; max-width: 10rem; overflow: hidden; text-overflow: ellipsis; }
.chart { margin: 0; font-size: .8rem; color: var(--soft); }
.plot { position: relative; height: 240px; margin: .3rem .8rem 1.5rem 3.4rem; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible;
  border-bottom: 1px solid var(--soft); }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
path.grid { stroke: var(--rule); stroke-width: 1; }
path.raw { stroke: var(--pale); stroke-width: 1; }
path.main { stroke: var(--accent); stroke-width: 2.2; }
path.limit { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 4; }
path.mark { stroke: var(--warn); stroke-width: 1.5; }
path.series { stroke: var(--c); stroke-width: 2; }
path.c4, path.c5, path.c6, path.c7 { stroke-dasharray: 7 4; }
.plot path.dot { stroke-width: 8; stroke-dasharray: none; }
path.spread { stroke: var(--ink); stroke-width: 1.5; }
.plot path.area { fill: var(--pale); stroke: none; }
rect.part { fill: var(--c); }
.plot span { position: absolute; line-height: 1; white-space: nowrap; font-variant-numeric: tabular-nums; }
.plot .y { right: calc(100% + .5rem); transform: translateY(50%); }
.plot .x { top: calc(100% + .5rem); transform: translateX(-50%); }
.x-label { text-align: center; margin-left: 3.4rem; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: .5rem 1.5rem; }
.multiples h3 { margin: .6rem 0 0 3.4rem; } .multiples .plot { height: 110px; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 0 3.4rem; }
.key::before { content: ""; display: inline-block; width: 1.3rem; height: 0; margin-right: .45rem;
  vertical-align: middle; border-top: 2px solid var(--accent); }
.key.raw::before { border-top: 1px solid var(--pale); }
.key.limit::before { border-top: 1px dashed var(--soft); }
.key.mark::before { width: 0; height: .8rem; border-top: 0; border-left: 2px solid var(--warn); }
.key.series::before { border-top: 3px solid var(--c); }
.key.series.c4::before, .key.series.c5::before, .key.series.c6::before, .key.series.c7::before
  { border-top-style: dashed; }
.key.spread::before { width: 0; height: .8rem; border-top: 0; border-left: 2px solid var(--ink); }
.key.part::before { width: .8rem; height: .8rem; border: 0; border-radius: 2px;
  background: var(--c); }
@media (max-width: 560px) { main { padding: 1.25rem 1rem 2rem; } .wide { display: none; }
  table { font-size: .85rem; } th, td { padding-right: .55rem; } thead th { font-size: .75rem; }
  .sheet img { width: var(--least); } .tiles { grid-template-columns: 1fr 1fr; } .tiles dd { font-size: 1.15rem; }
  .plot { height: 200px; } .pairs th { width: 9rem; } h1 { font-size: 1.4rem; } }
"""
    + f"""@media print {{ :root {{ color-scheme: light; {_LIGHT} }}"""
    + """
  main { max-width: none; padding: 0; } section > h2 { break-after: avoid; } tr, figure, .tiles { break-inside: avoid; }
  .scroll, .sheet { overflow: visible; max-height: none; } .sheet img { width: auto; max-width: 100%; }
  .cell .card, nav { display: none !important; }
  details::details-content { content-visibility: visible; display: block; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
)
