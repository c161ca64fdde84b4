"""Statistics of units against figures computed by hand."""

import numpy as np
import pytest

from dinosr_jax.inference.units import statistics


@pytest.mark.parametrize(
    ("units", "values", "durations"),
    [
        ([3, 3, 1, 1, 1, 3], [3, 1, 3], [2, 3, 1]),
        ([0], [0], [1]),
        ([5, 5], [5], [2]),
        ([1, 2], [1, 2], [1, 1]),
        ([], [], []),
    ],
)
def test_run_lengths(units, values, durations):
    found = statistics.run_lengths(np.array(units, np.int32))
    assert [part.tolist() for part in found] == [values, durations]


def test_counts():
    assert statistics.count(np.array([2, 0, 2]), num_units=4).tolist() == [1, 0, 2, 0]
    assert statistics.count(np.array([], np.int32), num_units=2).tolist() == [0, 0]
    for wrong in ([4], [-1]):
        with pytest.raises(ValueError, match="expected 0 to 3"):
            statistics.count(np.array(wrong), num_units=4)


def test_a_corpus_by_hand():
    """Two utterances at 50 frames a second, 8 frames in all: 0.16 s, 5 runs."""
    utterances = [np.array([0, 0, 1, 1]), np.array([1, 0, 0, 2])]
    frames = sum(statistics.count(u, num_units=8) for u in utterances)
    runs = sum(statistics.count(statistics.run_lengths(u)[0], num_units=8) for u in utterances)
    assert frames.tolist()[:3] == [4, 3, 1] and runs.tolist()[:3] == [2, 2, 1]
    found = statistics.describe(frames, runs, frame_rate=50.0)
    entropy = 4 / 8 * np.log2(8 / 4) + 3 / 8 * np.log2(8 / 3) + 1 / 8 * np.log2(8)
    entropy_of_runs = 2 * 2 / 5 * np.log2(5 / 2) + 1 / 5 * np.log2(5)
    assert found.num_units == 8 and found.units_in_use == 3
    assert found.perplexity == pytest.approx(2**entropy)
    assert found.units_per_second == pytest.approx(50.0)
    assert found.deduplicated_units_per_second == pytest.approx(5 / 0.16)
    assert found.bit_rate == pytest.approx(3 * 5 / 0.16)
    assert found.entropy_bit_rate == pytest.approx(entropy_of_runs * 5 / 0.16)


def test_nothing_has_rates_of_zero():
    found = statistics.describe(np.zeros(4), np.zeros(4), frame_rate=50.0)
    assert found == (4, 0, 1.0, 0.0, 0.0, 0.0, 0.0)
