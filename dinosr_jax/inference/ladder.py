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
_MOST_FITTED = 48
# Audio that is computed while one more length is compiled, about: base, on two cores or one GPU.
_PRICE_SECONDS = {"cpu": 60.0, "other": 20_000.0}


class Ladder:
    """Fixed lengths, each 2^(1/4) times the one before, or others that fit given recordings.

    Args:
      shortest: Samples that a pass needs at least.
      longest_seconds: Of one pass.
      exact: Nothing is padded.
      platform: That computes.
    """

    def __init__(self, *, shortest: int, longest_seconds: float, exact: bool, platform: str):
        self._needed, self._exact = shortest, exact
        seconds = _PRICE_SECONDS.get(platform, _PRICE_SECONDS["other"])
        self._price = seconds * audio.SAMPLE_RATE
        self._shortest = max(int(_SHORTEST_SECONDS * audio.SAMPLE_RATE), shortest)
        self._longest = int(longest_seconds * audio.SAMPLE_RATE)
        self._fitted: tuple[int, ...] = ()

    def fit(self, lengths: Sequence[int]) -> None:
        """Chooses lengths for these utterances: each saves more padding than compiling it takes."""
        self._fitted = ()
        longest = min(_LONGEST_FITTED_SECONDS * audio.SAMPLE_RATE, self._longest)
        some = [n for n in lengths if self._needed <= n <= longest]
        if some and not self._exact:
            how = {"max_rungs": _MOST_FITTED, "price": self._price}
            self._fitted = padded_lengths(np.asarray(some), **how)

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
