"""An HTML page with inline styles and figures, no script and no link to elsewhere.

It follows the reader's light or dark scheme and prints in light.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from semivario_kernels.atomic import write_atomically
from semivario_kernels.variogram_plot import MARKS

# These and MARKS become CSS variables in the page, so that the figures follow its light or dark scheme.
_INK, _CARD = "#1c2430", "#fdfdfe"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": MARKS,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": MARKS,
    "ytick.color": MARKS,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.facecolor": _CARD,
    "legend.edgecolor": "none",
    "legend.framealpha": 1,
    "savefig.dpi": 200,
}


def write_page(path: str | Path, title: str, note: str, sections: list[str]) -> Path:
    """Write the page; missing folders are made.

    Args:
        path: the HTML file.
        title: heading of the page.
        note: the line under the title: what the reader must know before any number.
        sections: HTML.

    Raises:
        OSError: the file cannot be written.
    """
    page = _PAGE.format(title=escape(title), note=escape(note), css=_CSS, body="\n".join(sections))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def svg_figure(label: str, draw: Callable[[Figure], None], inches: tuple[float, float]) -> str:
    """The figure as an <svg> element that takes its colours and its font from the page."""
    buffer = io.StringIO()
    # the salt makes the ids of clip paths repeatable, and different from those of the page's other figures
    with mpl.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_CARD, "var(--card)").replace(MARKS, "var(--marks)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def section(heading: str, content: str, explanation: str) -> str:
    """A card with a heading, a figure or table, and what it shows."""
    return (
        f"<section><h2>{escape(heading)}</h2><figure>{content}"
        f"<figcaption>{escape(explanation)}</figcaption></figure></section>"
    )


def entries(heading: str, values: Mapping[str, str]) -> str:
    """A card of names with their values."""
    rows = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f"<section><h2>{escape(heading)}</h2><dl>{rows}</dl></section>"


def digits(number: float, decimals: int, signed: bool = False) -> str:
    """A number with so many decimals; `signed` gives a positive one its plus."""
    text = f"{abs(number):,.{decimals}f}"
    if not text.strip("0."):
        return text
    return f"{'−' if number < 0 else '+' if signed else ''}{text}"


def plain(value: object) -> str:
    """A setting as a reader writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return str(value)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="note">{note}</p>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --paper: #f4f6f8; --card: #ffffff; --ink: #1c2430; --soft: #5b6675;
  --marks: #77828f; --line: #dfe4ea; --better: #1b7f5c; --worse: #b3352b; --note: #fdf3dc;
  --note-line: #d9a52e; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --card: #1a2028; --ink: #e6eaf0;
  --soft: #a3adba; --marks: #8a95a3; --line: #2c3541; --better: #4cc398; --worse: #f0857b; --note: #2a2415;
  --note-line: #a8802a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 Inter, system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 28px 56px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 14px; }
h2 { font-size: 17px; letter-spacing: -0.01em; margin: 0 0 12px; }
.note { margin: 0 0 26px; padding: 10px 16px; border-radius: 4px;
  background: var(--note); border-left: 4px solid var(--note-line); }
.cards { display: grid; grid-template-columns: repeat(5, 1fr); gap: 14px; margin: 0 0 18px; }
.cards div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.cards div { padding: 14px 16px; display: flex; flex-direction: column; }
.cards b { font-size: 27px; line-height: 1.35; letter-spacing: -0.02em; }
.cards span { font-size: 13px; color: var(--soft); }
section { padding: 20px 22px; margin: 0 0 18px; min-width: 0; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; margin: 0 0 18px; }
.two section { margin: 0; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
figcaption { margin-top: 10px; font-size: 13.5px; line-height: 1.5; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 0 8px 14px; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
tbody th { text-align: left; padding-left: 0; white-space: nowrap; }
td { white-space: nowrap; }
td small { display: inline-block; min-width: 108px; }
td:last-child small { min-width: 92px; }
thead th { color: var(--soft); font-size: 13.5px; }
thead i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 7px; }
small { color: var(--soft); font-size: 12.5px; margin-left: 9px; font-weight: 400; }
.cards .better, .better { color: var(--better); }
.cards .worse, .worse { color: var(--worse); }
dl { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4px 28px; margin: 0;
  font-size: 13.5px; }
dl div { display: flex; justify-content: space-between; gap: 12px; border-bottom: 1px solid var(--line); }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
@media screen and (max-width: 860px) { .two, dl { grid-template-columns: minmax(0, 1fr); }
  .cards { grid-template-columns: 1fr 1fr; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #1c2430; --soft: #4b5563;
    --marks: #77828f; --line: #d5dae1; --better: #1b7f5c; --worse: #b3352b; --note: #fdf3dc;
    --note-line: #d9a52e; }
  body { zoom: 0.72; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { padding: 0; max-width: none; }
  section, .cards { break-inside: avoid; }
}
"""
