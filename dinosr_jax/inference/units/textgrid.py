"""Praat's TextGrid files, in the long format, with tiers of intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dinosr_jax.inference.units.statistics import run_lengths


class Interval(NamedTuple):
    """A text from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def unit_intervals(units: np.ndarray, *, hop_seconds: float, end: float) -> list[Interval]:
    """Runs of equal units as intervals without gaps from 0 to the utterance's end.

    Args:
      units: [T]; unit i begins at i * hop_seconds.
      hop_seconds: Step of the frames.
      end: Length of the utterance in seconds; the last unit lasts until then.

    Returns:
      One interval a run.
    """
    values, durations = run_lengths(units)
    ends = [min(frames * hop_seconds, end) for frames in np.cumsum(durations).tolist()[:-1]]
    bounds = [0.0, *ends, end]
    return [
        Interval(start, stop, str(unit))
        for start, stop, unit in zip(bounds[:-1], bounds[1:], values.tolist(), strict=True)
    ]


def to_textgrid(tiers: Mapping[str, Sequence[Interval]], *, end: float) -> str:
    """The text of a TextGrid.

    Args:
      tiers: Name -> intervals without gaps from 0 to `end`.
      end: Length in seconds.

    Returns:
      The file's text; quotes within names and texts are doubled, as Praat has it.
    """
    quoted = lambda text: '"' + text.replace('"', '""') + '"'
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_seconds(end)}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for i, (name, intervals) in enumerate(tiers.items(), start=1):
        lines += [
            f"    item [{i}]:",
            '        class = "IntervalTier"',
            f"        name = {quoted(name)}",
            "        xmin = 0",
            f"        xmax = {_seconds(end)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for j, interval in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{j}]:",
                f"            xmin = {_seconds(interval.start)}",
                f"            xmax = {_seconds(interval.end)}",
                f"            text = {quoted(interval.text)}",
            ]
    return "\n".join(lines) + "\n"


def _seconds(value: float) -> str:
    """Up to ten decimals: no 0.060000000000000005, no exponent."""
    return f"{value:.10f}".rstrip("0").rstrip(".") or "0"
