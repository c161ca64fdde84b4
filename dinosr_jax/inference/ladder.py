"""The lengths that audio is padded to: few, so that few programs are compiled.

Shapes: S samples.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.padding import padded_lengths

_RATIO = 2**0.25  # of neighbouring lengths: at most 19 % of a batch is padding for it
_SHORTEST_SECONDS = 0.5
_LONGEST_FITTED_SECONDS = 60


class Ladder:
    """Fixed lengths, each 2^(1/4) times the one before, or others that fit given recordings.

    Args:
      shortest: Samples that a pass needs at least.
      longest_seconds: Of one pass.
      exact: Nothing is padded.
    """

    def __init__(self, *, shortest: int, longest_seconds: float, exact: bool):
        self._needed, self._exact = shortest, exact
        self._shortest = max(int(_SHORTEST_SECONDS * audio.SAMPLE_RATE), shortest)
        self._longest = int(longest_seconds * audio.SAMPLE_RATE)
        self._fitted: tuple[int, ...] = ()

    def fit(self, lengths: Sequence[int]) -> None:
        """Chooses lengths that pad these utterances least, no more than they would take else."""
        self._fitted = ()
        longest = min(_LONGEST_FITTED_SECONDS * audio.SAMPLE_RATE, self._longest)
        some = [n for n in lengths if self._needed <= n <= longest]
        if some and not self._exact:
            number = len({self.rung(n) for n in some})
            self._fitted = padded_lengths(np.asarray(some), max_rungs=number)

    def rung(self, samples: int) -> int:
        """The length that audio of S samples is padded to."""
        if self._exact or samples > self._longest:
            return samples
        if self._fitted and samples <= self._fitted[-1]:
            return self._fitted[bisect.bisect_left(self._fitted, samples)]
        length = float(self._shortest)
        while length < samples:
            length *= _RATIO
        return max(samples, min(int(length), self._longest))
