"""Pieces of HTML: nothing that comes from a file becomes markup."""

import base64
import struct

import pytest

from dinosr_jax.report import markup
from dinosr_jax.report.figures.drawing import Picture
from tests.html_page import Page

HOSTILE = "</script>' \" <img src=x onerror=\"alert('1')\"> & {{ x }} {% x %} \x00\ud800\u202e"
PIECES = markup.environment().get_template("macros.html").module


def png(width, height):
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"rest"


@pytest.mark.parametrize(
    ("html", "tags"),
    [
        (PIECES.commands([HOSTILE]), 2),
        (PIECES.missing(HOSTILE, [HOSTILE]), 4),
        (PIECES.table(HOSTILE, [HOSTILE], [[HOSTILE, HOSTILE]]), 10),
        (PIECES.figure(Picture("x", HOSTILE, HOSTILE, HOSTILE, png(4, 3))), 3),
        (PIECES.details(HOSTILE, caller=lambda: ""), 2),
    ],
    ids=["commands", "missing", "table", "figure", "details"],
)
def test_every_piece_escapes_its_texts(html, tags):
    read = Page(html)
    assert len(read.tags) == tags, html
    assert not {"script"} & {tag for tag, _ in read.tags}
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert "\x00" not in html and "\u202e" not in html
    html.encode()


def test_a_text_is_shown_as_it_is():
    text = "a <b> & \"c\" 'd' 4.05\u00a0% \u200d\n\tz"
    assert Page(PIECES.commands([text, "x"])).parts[""].strip() == f"{text}\nx"


def test_a_figure_holds_its_pictures_and_their_sizes():
    wide, narrow = png(1200, 500), png(450, 900)
    picture = Picture("u", "t", "alternative", "caption", wide, narrow)
    tags = dict(Page(PIECES.figure(picture)).tags)
    assert tags["figure"] == {"id": "u"} and tags["img"]["alt"] == "alternative"
    assert (tags["img"]["width"], tags["img"]["height"]) == ("1200", "500")
    assert (tags["source"]["width"], tags["source"]["height"]) == ("450", "900")
    assert base64.b64decode(tags["img"]["src"].partition(",")[2]) == wide
    assert base64.b64decode(tags["source"]["srcset"].partition(",")[2]) == narrow


def test_a_table_has_heads_of_columns_and_rows():
    read = Page(PIECES.table("what", ["a", "b"], [["x", 1], ["y", 2]]))
    scopes = [attributes["scope"] for tag, attributes in read.tags if tag == "th"]
    assert scopes == ["col", "col", "row", "row"] and "what" in read.text()


def test_a_page_has_its_parts_and_loads_nothing():
    lead = {"what_it_is": ["lead"], "problems": [HOSTILE], "picture": None, "while_training": ""}
    lead |= {"commands": [], "health": ""}
    data = {"picture": None, "commands": ["{{ body }} ${x}"]}
    sections = [markup.Section("utterance", "First & last", data)]
    html = markup.page(title="<run>", lead=lead, sections=sections, made="now", version="1")
    read = Page(html)
    tags = dict(read.tags)
    assert tags["html"]["lang"] == "en" and tags["section"]["aria-labelledby"] == "utterance-title"
    assert "First & last" in read.text("utterance") and "<run>" in read.text()
    assert "{{ body }} ${x}" in read.text("utterance")
    assert not {"script", "iframe", "object"} & set(tags)
    assert all(link.startswith(("#", "data:")) for link in read.loaded)
    assert "url(" not in html and "@import" not in html
