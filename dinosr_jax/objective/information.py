"""What units say about phones: entropy, mutual information, purity. NumPy, float64.

Definitions of HuBERT's evaluation (fairseq, examples/hubert/measure_teacher_quality.py), without
the small number that it adds in logarithms; cells that are zero add nothing.

Shapes: P phones, U units, K anything that is counted.
"""

import numpy as np


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that counts [K] estimate; 0 where nothing is counted."""
    counts = np.asarray(counts, np.float64)
    share = counts[counts > 0] / (counts.sum() or 1.0)
    return float(np.sum(share * np.log2(1 / share)))


def perplexity(counts: np.ndarray) -> float:
    """2^entropy of counts [K]: as many units, used evenly, are as hard to guess."""
    return 2.0 ** entropy(counts)


def mutual_information(table: np.ndarray) -> float:
    """I(phone; unit).

    Args:
      table: [P, U], how often phone and unit occur together; not negative.

    Returns:
      Bits; 0 where nothing is counted.

    Raises:
      ValueError: It is no such table.
    """
    joint = _joint(table)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return max(0.0, float(np.sum(joint[there] * np.log2(joint[there] / independent[there]))))


def pnmi(table: np.ndarray) -> float:
    """Phone-normalised mutual information, I(phone; unit) / H(phone), of counts [P, U].

    Returns:
      0 to 1, the share of the phone's uncertainty that the unit takes away; 0 where there is none
      (one phone alone).

    Raises:
      ValueError: It is no such table.
    """
    of_phones = entropy(_joint(table).sum(axis=1))
    return min(1.0, mutual_information(table) / of_phones) if of_phones > 0 else 0.0


def phone_purity(table: np.ndarray) -> float:
    """How often the unit's most frequent phone is right: sum_u max_p P[p, u] of counts [P, U].

    Returns:
      0 to 1; 0 where nothing is counted.

    Raises:
      ValueError: It is no such table.
    """
    return float(_joint(table).max(axis=0, initial=0.0).sum())


def cluster_purity(table: np.ndarray) -> float:
    """How often the phone's most frequent unit is right: sum_p max_u P[p, u] of counts [P, U].

    Returns:
      0 to 1; 0 where nothing is counted.

    Raises:
      ValueError: It is no such table.
    """
    return float(_joint(table).max(axis=1, initial=0.0).sum())


def _joint(table: np.ndarray) -> np.ndarray:
    counts = np.asarray(table, np.float64)
    if counts.ndim != 2 or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(
            f"counts of phone and unit: found shape {counts.shape}, {counts.min(initial=0):g} to "
            f"{counts.max(initial=0):g}; expected [phones, units], 0 or more"
        )
    return counts / (counts.sum() or 1.0)
