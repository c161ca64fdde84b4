"""TextGrids, read back by a reader that knows Praat's long format and nothing of the writer."""

import re

import numpy as np
import pytest

from dinosr_jax.inference.units.textgrid import Interval, to_textgrid, unit_intervals

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


def test_units_are_contiguous_to_the_end():
    units = np.array([7, 7, 7, 3, 3, 0])
    found = unit_intervals(units, hop_seconds=0.02, end=0.1333125)
    assert found == [(0.0, 0.06, "7"), (0.06, 0.1, "3"), (0.1, 0.1333125, "0")]
    ((name, intervals),) = read(to_textgrid({"units": found}, end=0.1333125))
    assert name == "units" and intervals == found


def test_a_single_frame_and_frames_beyond_the_end():
    assert unit_intervals(np.array([4]), hop_seconds=0.02, end=0.025) == [(0.0, 0.025, "4")]
    found = unit_intervals(np.array([4, 4, 1]), hop_seconds=0.02, end=0.035)
    assert [interval.end for interval in found] == [0.035, 0.035]


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
