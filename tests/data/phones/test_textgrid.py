"""TextGrids: long and short, those of the writer here, and broken ones.

What is written is also read by a reader that knows Praat's long format and nothing of the writer.
"""

import re

import numpy as np
import pytest

from dinosr_jax.data.phones.textgrid import Interval, interval_tiers, to_textgrid
from dinosr_jax.data.text_files import TextError
from dinosr_jax.inference.units.writer import unit_intervals

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "say ""a
! xmin = 3"""
    item [2]:
        class = "TextTier"
        name = "bells"
        xmin = 0
        xmax = 0.5
        points: size = 1
        points [1]:
            number = 0.25
            mark = "7"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 2.5e-1
            text = "EY1"
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = ""
'''.replace("\n", " \n")  # Praat ends lines with a blank
SHORT = """File type = "ooTextFile short"
"TextGrid"

0
0.5
<exists>
1
"IntervalTier"
"phones"
0
0.5
2
0
0.25
"EY1"
0.25 0.5 "" ! 3 "a comment
"""


def test_the_long_format():
    words, phones = interval_tiers(LONG, path="x")
    assert words == ("words", [(0.0, 0.5, 'say "a \n! xmin = 3"', 16)])
    assert phones == ("phones", [(0.0, 0.25, "EY1", 36), (0.25, 0.5, "", 40)])
    dense = interval_tiers(LONG.replace(" = ", "=").replace(" \n", "\n"), path="x")
    assert dense[1] == phones


def test_the_short_format():
    ((name, spans),) = interval_tiers(SHORT, path="x")
    assert name == "phones" and [span[:3] for span in spans] == [
        (0.0, 0.25, "EY1"),
        (0.25, 0.5, ""),
    ]
    assert [span.line for span in spans] == [13, 16]
    absent = SHORT[: SHORT.index("<exists>")] + "<absent>\n"
    assert interval_tiers(absent, path="x") == []


def test_what_is_written_here_is_read():
    units = np.array([7, 7, 3, 0])
    tiers = {'a "b"': unit_intervals(units, hop_seconds=0.02, end=0.09), "é": []}
    found = interval_tiers(to_textgrid(tiers, end=0.09), path="x")
    assert found[0][0] == 'a "b"' and found[1] == ("é", [])
    spans = [(0.0, 0.04, "7"), (0.04, 0.06, "3"), (0.06, 0.09, "0")]
    assert [span[:3] for span in found[0][1]] == spans


@pytest.mark.parametrize("text", [LONG, SHORT])
def test_no_cut_is_taken_for_a_whole(text):
    """Whatever is missing at the end: an error, with line and what was expected."""
    whole = interval_tiers(text, path="x")
    for size in range(len(text.rstrip())):
        try:
            assert interval_tiers(text[:size], path="x") == whole
        except TextError as error:
            assert "x: line " in str(error) and "expected" in str(error)
        else:
            assert text is SHORT and size > text.index('""')


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("xmax = 2.5e-1", "xmax = nan", 'line 38: found "EY1", expected an end time in tier'),
        ("xmax = 2.5e-1", "xmax = --undefined--", "expected an end time"),
        ("intervals: size = 2", "intervals: size = 1", "line 40: found 0.25, expected the end of"),
        ("intervals: size = 2", "intervals: size = 3", "line 42: found the end of the file .is it"),
        ("intervals: size = 2", "intervals: size = 1.5", "found 1.5, expected the size of tier"),
        ("intervals: size = 2", "intervals: size = -2", "found -2, expected the size of tier"),
        ('"IntervalTier"', '"PitchTier"', 'line 10: found "PitchTier", expected "IntervalTier"'),
        ('Object class = "TextGrid"', 'Object class = "Sound"', 'line 2: found "Sound", expected'),
        ("tiers? <exists>", "", "line 7: found 3, expected <exists>"),
        ('text = "" ', 'text = "', "line 42: found a text that is not closed"),
    ],
)
def test_broken(old, new, expected):
    assert old in LONG
    with pytest.raises(TextError, match=expected):
        interval_tiers(LONG.replace(old, new, 1), path="x")


FIELD = re.compile(r'^\s*(?:item \[\d+\]:|intervals \[\d+\]:|(.*?) ?= ?("(?:[^"]|"")*"|\S+) ?)$')


def read(text):
    """[(name, xmin, xmax, [(xmin, xmax, text)])] of a TextGrid; the fields in Praat's order."""
    lines = text.splitlines()
    assert lines[:3] == ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    assert lines[5] == "tiers? <exists>" and lines[7] == "item []:"
    fields = [(m[1], m[2]) for line in [*lines[3:5], lines[6], *lines[8:]]
              if (m := FIELD.match(line)) and m[1]]  # fmt: skip
    take = lambda name: (fields[0][0] == name or pytest.fail(str(fields[0]))) and fields.pop(0)[1]
    quoted = lambda value: value[1:-1].replace('""', '"')
    end = (float(take("xmin")), float(take("xmax")))
    tiers = []
    for _ in range(int(take("size"))):
        assert take("class") == '"IntervalTier"'
        name = quoted(take("name"))
        assert (float(take("xmin")), float(take("xmax"))) == end
        intervals = [
            (float(take("xmin")), float(take("xmax")), quoted(take("text")))
            for _ in range(int(take("intervals: size")))
        ]
        tiers.append((name, intervals))
    assert not fields
    return tiers


def test_tiers_quotes_and_long_recordings():
    tiers = {
        'say "units"': [Interval(0.0, 36_000.02, 'a "b" ""')],
        "é": [Interval(0.0, 0.06 + 1e-13, ""), Interval(0.06 + 1e-13, 36_000.02, "x")],
    }
    text = to_textgrid(tiers, end=36_000.02)
    assert read(text) == [
        ('say "units"', [(0.0, 36_000.02, 'a "b" ""')]),
        ("é", [(0.0, 0.06, ""), (0.06, 36_000.02, "x")]),
    ]
    assert '"say ""units"""' in text and "xmin = 0\n" in text and "e-" not in text
