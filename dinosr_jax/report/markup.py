"""A report as HTML, by the templates beside this file; nothing is loaded from outside.

Every text goes through autoescape. Controls, lone surrogates and turns of direction become boxes.
"""

import base64
import functools
import struct
import unicodedata
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

# What the page may load: its own styles and what is written in it; no script, nothing of others.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_KEPT = "\n\t\u200c\u200d"  # of the characters that are not seen; the last two join letters


class Section(NamedTuple):
    """A part of the report: `data` of the template ANCHOR.html."""

    anchor: str
    title: str
    data: dict[str, Any]


def page(**values: Any) -> str:
    """The whole page: `title`, `lead` (data), `sections`, `made` (when), `version`."""
    return environment().get_template("report.html").render(policy=_POLICY, **values)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("dinosr_jax.report"),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"data_uri": _data_uri, "pixels": _pixels}
    return made


def _visible(value: Any) -> Any:
    """A text as it can be shown; what is HTML already stays."""
    if isinstance(value, Markup):
        return value
    kept = lambda c: c in _KEPT or unicodedata.category(c)[0] != "C"
    return "".join(c if kept(c) else "\ufffd" for c in str(value))


def _data_uri(content: bytes, kind: str) -> Markup:
    """Bytes inside the page; `kind` is their media type."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _pixels(png: bytes) -> tuple[int, int]:
    """Width and height, from a PNG's header."""
    return struct.unpack(">II", png[16:24])
