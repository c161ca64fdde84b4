"""Pieces of the report's HTML. Every text goes through `escape`; nothing is loaded from outside."""

import base64
import html
import struct
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from dinosr_jax.report.figures.drawing import Picture

# What the page may load: its own styles and what is written in it; no script, nothing of others.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_NARROW = "(max-width: 44rem)"
_KEPT = "\n\t\u200c\u200d"  # of the characters that are not seen; the last two join letters


class Section(NamedTuple):
    """A part of the report."""

    anchor: str
    title: str
    body: str  # HTML


def escape(text: Any) -> str:
    """Text as HTML shows it; controls, lone surrogates and turns of direction as boxes."""
    kept = lambda c: c in _KEPT or unicodedata.category(c)[0] != "C"
    plain = "".join(c if kept(c) else "\ufffd" for c in str(text))
    return html.escape(plain, quote=True)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes inside the page; `kind` is their media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def commands(lines: Sequence[str]) -> str:
    """Commands to copy, a line each."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def missing(what: str, how: Sequence[str]) -> str:
    """What is not there, and the commands that make it."""
    return f'<div class="missing">{paragraph(what)}{commands(how) if how else ""}</div>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in a box that scrolls by itself; the first cell of each row names it."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(picture: Picture, *, kind: str = "") -> str:
    """A figure with its alternative text and caption, embedded."""
    width, height = _size(picture.png)
    image = (
        f'<img src="{data_uri(picture.png, "image/png")}" width="{width}" height="{height}" '
        f'alt="{escape(picture.alt)}">'
    )
    if picture.narrow_png:
        width, height = _size(picture.narrow_png)
        source = data_uri(picture.narrow_png, "image/png")
        image = (
            f'<picture><source media="{_NARROW}" srcset="{source}" width="{width}" '
            f'height="{height}">{image}</picture>'
        )
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    name = escape(picture.name)
    return f'<figure id="{name}"{_class(kind)}>{image}{caption}</figure>'


def figures(pictures: Iterable[Picture]) -> str:
    """Figures beside each other, as many as there is room for."""
    return f'<div class="figures">{"".join(map(figure, pictures))}</div>'


def audio(wav: bytes, label: str) -> str:
    """A recording to listen to, embedded."""
    source = data_uri(wav, "audio/wav")
    return (
        f'<audio controls preload="metadata" src="{source}" aria-label="{escape(label)}"></audio>'
    )


def details(summary: str, body: str) -> str:
    """Something that opens at a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def page(*, title: str, lead: str, sections: Sequence[Section], made: str) -> str:
    """The whole page.

    Args:
      title: Plain text.
      lead: HTML of what stands on top.
      sections: The parts, in order.
      made: Plain text of when and by what the page was made.
    """
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    parts = "".join(
        f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title">'
        f'<h2 id="{s.anchor}-title">{escape(s.title)}</h2>{s.body}</section>'
        for s in sections
    )
    values = {"title": escape(title), "made": escape(made), "lead": lead, "policy": _POLICY}
    return Template(template).substitute(values, links=links, sections=parts)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from a PNG's header."""
    return struct.unpack(">II", png[16:24])
