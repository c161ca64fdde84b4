"""Phones in time: labels of frames without float error, names, and intervals that make no sense."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.data.phones.phones import (
    Phone,
    clean_label,
    count_frames,
    frame_labels,
    frame_phones,
    in_order,
)
from dinosr_jax.data.phones.textgrid import Span
from dinosr_jax.data.text_files import TextError


def test_a_label_every_10_ms_by_hand():
    phones = [Phone(0.01, 0.03, "A"), Phone(0.03, 0.035, "B"), Phone(0.05, 0.06, "C")]
    found = frame_labels(phones, num_frames=8)
    assert found.tolist() == ["SIL", "A", "A", "SIL", "SIL", "C", "SIL", "SIL"]
    assert frame_phones(phones, num_frames=4).tolist() == [-1, 0, 0, -1]
    assert count_frames(phones) == 6
    assert frame_labels([], num_frames=2).tolist() == ["SIL", "SIL"] and count_frames([]) == 0
    later = frame_labels(phones, num_frames=3, step=0.02, first=0.0125)
    assert later.tolist() == ["A", "B", "C"]


def test_no_multiple_of_10_ms_is_shifted_by_rounding():
    """3.57 s is frame 357; and so for every frame of 20 minutes, against decimals."""
    edges = [float(Decimal(i) / 100) for i in range(120_001)]
    assert 357 * 0.01 != 3.57  # why times are rounded
    phones = [Phone(edges[i], edges[i + 1], str(i)) for i in range(120_000)]
    assert frame_labels(phones, num_frames=120_000).tolist() == list(map(str, range(120_000)))
    assert all(count_frames([phone]) == i + 1 for i, phone in enumerate(phones))


def test_an_edge_at_a_frame_s_centre_belongs_to_the_later_phone():
    for i in range(2_000):
        edge = float(Decimal(2 * i + 1) / 200)
        phones = [Phone(0.0, edge, "A"), Phone(edge, edge + 1, "B")]
        assert frame_labels(phones, num_frames=i + 1)[i] == "B"
        assert count_frames(phones[:1]) == i


def test_against_a_search_with_decimals():
    rng = np.random.default_rng(0)
    for _ in range(20):
        times = np.unique(rng.integers(0, 3_000, 40))  # ms
        pairs = [(a, b) for a, b in zip(times[:-1], times[1:], strict=True) if rng.random() < 0.8]
        phones = [Phone(a / 1000, b / 1000, f"{a}") for a, b in pairs]
        expected = []
        while (centre := 5 + 10 * len(expected)) < pairs[-1][1]:
            said = [f"{a}" for a, b in pairs if a <= centre < b]
            expected += said or ["SIL"]
        assert count_frames(phones) == len(expected)
        assert frame_labels(phones, num_frames=len(expected)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "stripped", "kept"),
    [
        *((text, "SIL", "SIL") for text in ("", " ", "sil", "SIL", "sp", "SP", "<eps>", "<sil>")),
        ("spn", "SPN", "SPN"),
        ("AH0", "AH", "AH0"),
        ("er2", "er", "er2"),
        ("HH", "HH", "HH"),
        ("41", "41", "41"),  # CPC's classes
        ("a1", "a1", "a1"),  # a tone, no stress
        ("AH3", "AH3", "AH3"),
        ("tʰ", "tʰ", "tʰ"),
    ],
)
def test_names(text, stripped, kept):
    assert clean_label(text, stress="strip") == stripped
    assert clean_label(text, stress="keep") == kept


def test_intervals_are_sorted_and_an_overlap_by_rounding_is_none():
    spans = [Span(0.30000000000000004, 0.5, "b", 2), Span(0.1, 0.3000000000000001, "a", 1)]
    found = in_order("x", spans, path=Path("f"), named=str.upper)
    assert found == ((0.1, 0.3000000000000001, "A"), (0.3000000000000001, 0.5, "B"))


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0.2, 0.1)], "f: line 1: x: found an interval from 0.2 to 0.1 s, expected an end after"),
        ([(0.2, 0.2)], "found an interval from 0.2 to 0.2 s"),
        ([(float("nan"), 0.2)], "found times nan and 0.2, expected numbers"),
        ([(0.0, float("inf"))], "found times 0.0 and inf"),
        ([(-0.1, 0.2)], "found a start of -0.1 s, expected 0 or later"),
        (
            [(0.0, 0.2), (0.1, 0.3)],
            "line 2: x: found 'p' from 0.1 to 0.3 s, which overlaps .* line 1",
        ),
        ([(0.0, 0.2), (0.0, 0.2)], "is the utterance there twice"),
    ],
)
def test_times_that_make_no_sense(spans, expected):
    rows = [Span(*span, "p", line) for line, span in enumerate(spans, 1)]
    with pytest.raises(TextError, match=expected):
        in_order("x", rows, path=Path("f"), named=str)
