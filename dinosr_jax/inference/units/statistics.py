"""What a set of units is like: how many are used, how evenly, how fast they change.

Seconds are frames divided by the frame rate, as in the published figures. Pure functions on arrays.

Shapes: T frames, R runs of equal units, K units.
"""

from typing import NamedTuple

import numpy as np

from dinosr_jax.objective.information import entropy, perplexity


class UnitStatistics(NamedTuple):
    """Statistics of the units of a corpus; rates are 0 where there is no frame.

    `bit_rate` is log2(K) times the deduplicated units a second; `entropy_bit_rate` the entropy of
    the deduplicated units, in bits, times the same: another number, never the greater one.
    """

    num_units: int  # K
    units_in_use: int
    perplexity: float  # 2^H of the units of the frames
    units_per_second: float  # before de-duplication
    deduplicated_units_per_second: float
    bit_rate: float
    entropy_bit_rate: float


def run_lengths(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joins equal neighbours of units [T]: units [R] and durations [R] in frames."""
    units = np.asarray(units)
    starts = np.flatnonzero(np.concatenate([[True], units[1:] != units[:-1]])[: len(units)])
    return units[starts], np.diff(np.append(starts, len(units)))


def count(units: np.ndarray, *, num_units: int) -> np.ndarray:
    """How often each of K units occurs in units [T]: [K] int64; ValueError for others."""
    units = np.asarray(units)
    if len(units) and not (0 <= units.min() and units.max() < num_units):
        raise ValueError(
            f"units: found {units.min()} to {units.max()}, expected 0 to {num_units - 1}"
        )
    return np.bincount(units, minlength=num_units)


def describe(
    frame_counts: np.ndarray, run_counts: np.ndarray, *, frame_rate: float
) -> UnitStatistics:
    """Statistics of a corpus.

    Args:
      frame_counts: [K], frames of each unit; sums of `count` of the utterances.
      run_counts: [K], runs of each unit: the same after `run_lengths` of each utterance.
      frame_rate: Frames a second.
    """
    seconds = float(np.sum(frame_counts)) / frame_rate
    a_second = lambda total: float(total) / seconds if seconds else 0.0
    changes = a_second(np.sum(run_counts))
    return UnitStatistics(
        num_units=len(frame_counts),
        units_in_use=int(np.count_nonzero(frame_counts)),
        perplexity=perplexity(frame_counts),
        units_per_second=a_second(np.sum(frame_counts)),
        deduplicated_units_per_second=changes,
        bit_rate=float(np.log2(len(frame_counts))) * changes,
        entropy_bit_rate=entropy(run_counts) * changes,
    )
