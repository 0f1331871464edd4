"""The frame of a page, and what its parts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files


def make_page(title: str, body: str) -> str:
    """Return a page as HTML, with the style in it, for light and dark screens.

    Args:
        title: as text.
        body: as HTML.
    """
    style = files("hotloop.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"{body}</main></body></html>\n"
    )


def make_facts(facts: Sequence[tuple[str, str]]) -> str:
    """Return a table of names, and what there is to say of each."""
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in facts)
    return f'<table class="wide"><tbody>{"".join(rows)}</tbody></table>'


def make_picture(svg: str) -> str:
    """Return a picture on white, whose colours are not the page's."""
    return f'<div class="picture">{svg}</div>'


def make_table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: int = -1) -> str:
    """Return a table.

    Args:
        header: as text.
        rows: cells as HTML.
        marked: the row to stress.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        lines.append(f"<tr{' class=best' if place == marked else ''}>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
