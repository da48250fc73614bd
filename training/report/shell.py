"""The frame of every page: one file that fetches nothing and runs only its own scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files


def asset(name: str) -> str:
    """The text of a style sheet or script of this package."""
    return (files('training.report') / 'assets' / name).read_text(encoding='utf-8')


def page(title: str, body: str, data: dict, scripts: tuple[str, ...]) -> str:
    """A whole HTML page.

    A policy in its head names the hashes of its own scripts and forbids everything else: text from
    a dataset could not run or fetch anything even if it were not escaped.

    Args:
        title: plain text.
        body: HTML.
        data: plain JSON types, for the scripts.
        scripts: assets, run in this order.
    """
    code = '\n'.join(asset(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{asset('page.css')}</style></head><body><main>
<h1>{html.escape(title)}</h1>
{body}
</main>
<script type="application/json" id="data">{embedded(data)}</script>
<script>{code}</script>
</body></html>
"""


def embedded(data: dict) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(',', ':'))
    return text.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')


def section(title: str, text: str, content: str, name: str = '') -> str:
    """A card with a heading; title and text are plain text, content is HTML."""
    attribute = f' id="{name}"' if name else ''
    paragraph = f'<p>{html.escape(text)}</p>' if text else ''
    return f'<section{attribute}><h2>{html.escape(title)}</h2>{paragraph}{content}</section>'


def box(name: str, css: str = '') -> str:
    """An empty element that a script fills."""
    return f'<div id="{name}" class="{css}"></div>'


def card(name: str, value: str, beside: str = '') -> str:
    """One headline number and what it stands beside."""
    texts = (html.escape(text) for text in (name, value, beside))
    return '<div class="card"><span>{}</span><b>{}</b><span>{}</span></div>'.format(*texts)


def cards(items: list[str]) -> str:
    """A row of cards."""
    return f'<div class="cards">{"".join(items)}</div>'


def table(rows: list[list[str]], css: str = '', header: bool = True) -> str:
    """Rows of plain text as a table that scrolls by itself where it is too wide."""
    lines = []
    for number, row in enumerate(rows):
        tag = 'th' if header and number == 0 else 'td'
        cells = ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)
        lines.append(f'<tr>{cells}</tr>')
    return f'<div class="scroll"><table class="{css}">{"".join(lines)}</table></div>'


def length(metres: float) -> str:
    """Such as '3.2 cm': metres for people."""
    for bound, factor, digits, unit in (
        (0.01, 1000, 1, 'mm'),
        (0.1, 100, 1, 'cm'),
        (1.0, 100, 0, 'cm'),
    ):
        if metres < bound:
            return f'{factor * metres:.{digits}f} {unit}'
    return f'{metres:.2f} m'


def angle(degrees: float) -> str:
    """Such as '0.42°': degrees for people."""
    return f'{degrees:.{2 if degrees < 1 else 1}f}°'
