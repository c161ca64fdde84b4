"""What units say about phones: by hand, and against scikit-learn."""

import math

import numpy as np
import pytest

from dinosr_jax.objective import information

# 8 frames: phone a with unit 0 three times and 1 once; b with 1 twice and 2 once; c with 2 once
TABLE = np.array([[3, 1, 0], [0, 2, 1], [0, 0, 1]])


def test_entropy_and_perplexity():
    assert information.entropy([1, 1, 1, 1]) == 2.0
    assert information.entropy([2, 1, 1, 0]) == 1.5
    assert information.entropy([0.5, 0.25, 0.25]) == information.entropy([0.05, 0.025, 0.025])
    assert (
        information.entropy([7, 0]) == information.entropy([0, 0]) == information.entropy([]) == 0
    )
    assert information.perplexity([5, 5, 5, 5, 0]) == pytest.approx(4.0)
    assert information.perplexity([2, 1, 1]) == pytest.approx(2**1.5)


def test_a_table_by_hand():
    """H(p) of 4/8, 3/8, 1/8; I over the five cells that are not zero."""
    of_phones = 4 / 8 * math.log2(2) + 3 / 8 * math.log2(8 / 3) + 1 / 8 * 3
    shared = (
        3 / 8 * math.log2(3 / 8 / (4 / 8 * 3 / 8))
        + 1 / 8 * math.log2(1 / 8 / (4 / 8 * 3 / 8))
        + 2 / 8 * math.log2(2 / 8 / (3 / 8 * 3 / 8))
        + 1 / 8 * math.log2(1 / 8 / (3 / 8 * 2 / 8))
        + 1 / 8 * math.log2(1 / 8 / (1 / 8 * 2 / 8))
    )
    assert information.mutual_information(TABLE) == pytest.approx(shared, abs=1e-12)
    assert information.pnmi(TABLE) == pytest.approx(shared / of_phones, abs=1e-12)
    assert information.pnmi(TABLE) == pytest.approx(0.57716, abs=1e-5)
    # unit 0 is a (3), 1 is b (2), 2 is b or c (1); a is 0 (3), b is 1 (2), c is 2 (1)
    assert information.phone_purity(TABLE) == information.cluster_purity(TABLE) == 6 / 8
    wide = np.array([[2, 2, 0, 0], [0, 0, 3, 1]])
    assert information.phone_purity(wide) == 1.0 and information.cluster_purity(wide) == 5 / 8
    assert information.pnmi(wide) == 1.0 and information.pnmi(wide.T) == pytest.approx(
        1 / 1.9056, abs=1e-4
    )


def test_the_ends():
    assert information.pnmi(np.eye(5)) == information.phone_purity(np.eye(5)) == 1.0
    assert information.pnmi(np.ones((4, 6))) == pytest.approx(0.0, abs=1e-15)
    assert information.pnmi([[3, 4]]) == 0.0  # one phone: nothing to know
    for empty in (np.zeros((2, 3)), np.zeros((0, 3)), np.zeros((2, 0))):
        for measure in ("mutual_information", "pnmi", "phone_purity", "cluster_purity"):
            assert getattr(information, measure)(empty) == 0.0
    assert information.pnmi(TABLE * 10**12) == pytest.approx(information.pnmi(TABLE))
    assert information.pnmi(TABLE / 8) == pytest.approx(information.pnmi(TABLE))


@pytest.mark.parametrize("wrong", [[1, 2], [[1, -1]], [[1, np.nan]], [[np.inf, 1]]])
def test_no_table(wrong):
    for measure in ("mutual_information", "pnmi", "phone_purity", "cluster_purity"):
        with pytest.raises(ValueError, match="expected .phones, units., 0 or more"):
            getattr(information, measure)(wrong)


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for phones, units, frames in ((40, 256, 5_000), (3, 7, 50), (12, 5, 400)):
        u = rng.integers(0, units, frames)
        p = (u * phones // units + rng.integers(0, 3, frames)) % phones
        table = metrics.cluster.contingency_matrix(p, u)
        nats = metrics.mutual_info_score(p, u)
        of_phones = -sum(c / frames * math.log(c / frames) for c in np.bincount(p) if c)
        assert information.mutual_information(table) == pytest.approx(nats / math.log(2), abs=1e-9)
        assert information.pnmi(table) == pytest.approx(nats / of_phones, abs=1e-9)
