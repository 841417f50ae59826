"""Pieces of a self-contained HTML page: style, sections, cards, tables, picture galleries.

The pieces take HTML where they say so; everything that comes from data is escaped before it gets here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #15181e; --faint: #687082; --line: #e3e6ec;
  --cell: #f0f2f6; --accent: #2f5fd0; --second: #d9822b; --third: #2a9d78; --wrong: #d1344b; --right: #2a9d78;
  --model-1: #2f5fd0; --model-2: #d9822b; --model-3: #2a9d78; --model-4: #b0459b; --model-5: #8a6a24;
  --model-6: #1d93b5; --model-7: #c8423f; --model-8: #6a7283; }
@media (prefers-color-scheme: dark) { :root { --page: #101216; --card: #181b21; --ink: #e8eaf0; --faint: #98a0b0;
  --line: #2a2f39; --cell: #20242c; --accent: #6f9bff; --second: #f0a45c; --third: #55c79f; --wrong: #f2687c;
  --right: #55c79f; --model-1: #6f9bff; --model-2: #f0a45c; --model-3: #55c79f; --model-4: #df86cd;
  --model-5: #cfae60; --model-6: #5fc4e2; --model-7: #f57f7c; --model-8: #a3abbc; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px 8px; }
header, section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 24px 28px;
  margin-bottom: 18px; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 14px; } h3 { font-size: 14px; margin: 0 0 8px; color: var(--faint); }
.eyebrow { margin: 0; color: var(--accent); font-weight: 600; font-size: 13px; letter-spacing: .06em;
  text-transform: uppercase; }
.lead { margin: 0; color: var(--faint); } .lead b { color: var(--ink); }
.note { color: var(--faint); font-size: 13px; margin: 12px 0 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin-top: 18px; }
.cards div { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.cards strong { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.cards span { display: block; font-size: 13px; } .cards small { color: var(--faint); }
header .cards div:first-child { border-color: var(--accent); }
header .cards div:first-child strong { color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 20px; }
.split { display: grid; grid-template-columns: minmax(0, 1.9fr) minmax(220px, 1fr); gap: 28px; }
@media (max-width: 760px) { .split { grid-template-columns: 1fr; } }
.scroll { overflow-x: auto; }
svg { width: 100%; height: auto; display: block; } .charts svg { max-width: 620px; }
svg text { font-family: inherit; fill: var(--ink); }
svg .chart-title { font-size: 13px; font-weight: 600; } svg .tick { font-size: 10.5px; fill: var(--faint); }
svg .axis { font-size: 11.5px; fill: var(--faint); } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
svg .point { opacity: 0; } svg .point:hover { opacity: 1; } svg .strong { fill: #fff; font-weight: 600; }
svg .error { stroke: var(--ink); stroke-width: 1.5; fill: none; } svg .zero { stroke: var(--faint); stroke-width: 1; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td:last-child, th { white-space: nowrap; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--faint); }
td:first-child { min-width: 90px; }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.bar { display: flex; align-items: center; gap: 10px; } .bar i { flex: 1; max-width: 150px; height: 7px;
  border-radius: 4px; background: linear-gradient(to right, var(--accent) var(--share), var(--cell) var(--share)); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 20px 18px; }
figure { margin: 0; } figure div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
figure img { width: 100%; display: block; border-radius: 6px; }
figcaption { margin-top: 6px; font-size: 13.5px; overflow-wrap: anywhere; } figcaption small { color: var(--faint); }
.wrong { color: var(--wrong); font-weight: 600; } .right { color: var(--right); font-weight: 600; }
code, pre { font: 13px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { background: var(--cell); border-radius: 8px; padding: 14px 16px; margin: 0; overflow-x: auto; }
pre i { color: var(--faint); font-style: normal; }
section > p { margin: 0 0 8px; } ul + dl, p + dl { margin-top: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 4px 0 10px; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; margin: 6px 0 22px; }
.strip figure > img { image-rendering: auto; } .strip figcaption { font-size: 12.5px; line-height: 1.35; }
.findings { margin-top: 16px; } .findings li { margin-bottom: 6px; } .wide { max-width: 760px; margin-top: 14px; }
.two { grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); margin: 16px 0; }
.sheet .gallery, .sheet figure div { grid-template-columns: 1fr; }
td .legend { margin: 0; font-size: inherit; flex-wrap: nowrap; white-space: nowrap; }
.scroll + h3, .note + h3 { margin-top: 20px; } .scroll + .strip { margin-top: 20px; }
summary { cursor: pointer; margin-top: 8px; color: var(--accent); } ul, ol { margin: 8px 0 0; padding-left: 22px; }
footer { text-align: center; color: var(--faint); font-size: 13px; padding: 8px 0 36px; }
"""


def page(title: str, body: str, footer: str) -> str:
    """A whole document from a title and a footer (text) and a body (HTML)."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main><footer>{escape(footer)}</footer></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A titled box around HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def note(text: str) -> str:
    """A small grey paragraph of text."""
    return f'<p class="note">{escape(text)}</p>'


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Figures to read first: (number, what it is, remark), all text."""
    boxes = (
        f"<div><strong>{escape(number)}</strong><span>{escape(what)}</span><small>{escape(remark)}</small></div>"
        for number, what, remark in entries
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: head is text, cells are HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def bar(share: float) -> str:
    """A share in [0, 1] as a number and a bar."""
    return f'<span class="bar">{share:.3f}<i style="--share:{share:.1%}"></i></span>'


def definitions(entries: dict[str, str]) -> str:
    """Names and what they are, both text."""
    return (
        "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in entries.items()) + "</dl>"
    )


def bullets(lines: Sequence[str]) -> str:
    """A list of texts."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def gallery(figures: Sequence[tuple[Sequence[bytes], str]]) -> str:
    """Groups of PNGs side by side, each with a caption (HTML)."""
    boxes = (
        f"<figure><div>{''.join(_picture(png) for png in pngs)}</div><figcaption>{caption}</figcaption></figure>"
        for pngs, caption in figures
    )
    return f'<div class="gallery">{"".join(boxes)}</div>'


def strip(figures: Sequence[tuple[bytes, str]]) -> str:
    """A row of PNGs, each with a caption (HTML) of its own."""
    boxes = (f"<figure>{_picture(png)}<figcaption>{caption}</figcaption></figure>" for png, caption in figures)
    return f'<div class="strip">{"".join(boxes)}</div>'


def folded(summary: str, body: str) -> str:
    """HTML that a click on the summary (text) opens."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """What colours mean: (text, CSS colour)."""
    marks = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'<div class="legend">{"".join(marks)}</div>'


def _picture(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
