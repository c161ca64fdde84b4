"""The plan for held-out speech: every utterance that is long enough is used, and always the same.

Batches are those of the first epoch of `BatchPlan`. What is in none of them comes last, in batches
that are filled up with empty rows: what does not fill a batch, and what is shorter than all crops.
Less than a batch is cropped to its shortest utterance.
"""

from collections.abc import Iterator

import numpy as np

from dinosr_jax.data.batches.crops import SAMPLE_RATE, BatchPlan, Crops
from dinosr_jax.data.batches.lengths import FIELD, HOP, lengths_of_frames, shortest_length
from dinosr_jax.data.batches.padding import EMPTY


class HeldOutPlan:
    """All held-out batches, as a pure function of (lengths, seed, step).

    Attributes:
      num_batches: batches an epoch; every epoch is the same.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        *,
        seed: int,
        max_batch_seconds: float,
        max_seconds: float,
        batch_multiple: int = 8,
        field: int = FIELD,
        hop: int = HOP,
        **ladder: float,
    ):
        """Plans the batches; arguments as of `BatchPlan`.

        Raises:
          ValueError: a parameter is out of range, or no utterance is long enough.
        """
        self.num_samples = np.asarray(num_samples, np.int64)
        self._multiple, self._frame = batch_multiple, {"field": field, "hop": hop}
        usable = self.num_samples >= shortest_length(**self._frame)
        full = BatchPlan(
            num_samples,
            seed=seed,
            max_batch_seconds=max_batch_seconds,
            max_seconds=min(max_seconds, max_batch_seconds / max(batch_multiple, 1)),
            batch_multiple=min(batch_multiple, max(int(usable.sum()), 1)),
            **self._frame,
            **ladder,
        )
        batches = [full.batch(step) for step in range(full.num_batches)]
        used = np.concatenate([batch.indices for batch in batches])
        left = np.setdiff1d(np.flatnonzero(usable), used)
        crop, most = full.rungs[0].num_samples, int(max_batch_seconds * SAMPLE_RATE)
        reached = self.num_samples[left] >= crop
        random = np.random.default_rng(seed)
        for some in (left[reached], left[~reached]):
            if len(some):
                batches += self._cropped(some, longest=crop, most=most, random=random)
        self._batches = [self._filled(batch) for batch in batches]
        self._num_used = int(usable.sum())
        self.num_batches = len(batches)

    def _cropped(
        self, some: np.ndarray, *, longest: int, most: int, random: np.random.Generator
    ) -> Iterator[Crops]:
        """Batches of some utterances, of `most` samples each, cropped to the shortest of them."""
        shortest = min(longest, int(self.num_samples[some].min()))
        crop = int(lengths_of_frames(shortest, **self._frame)[-1])
        size = most // crop // self._multiple * self._multiple
        for first in range(0, len(some), size):
            rows = some[first : first + size]
            yield Crops(rows, random.integers(0, self.num_samples[rows] - crop + 1), crop)

    def _filled(self, batch: Crops) -> Crops:
        """The batch with as many empty rows as make its size a multiple."""
        rows = (0, -len(batch.indices) % self._multiple)
        indices = np.pad(batch.indices, rows, constant_values=EMPTY)
        return Crops(indices, np.pad(batch.starts, rows), batch.num_samples)

    def batch(self, step: int) -> Crops:
        """The batch of a step, from 0 on: `indices` [B], -1 where a row is empty."""
        return self._batches[step % self.num_batches]

    def summary(self) -> str:
        """Describes what is used, in a line to print."""
        hours = self.num_samples.sum() / SAMPLE_RATE / 3600
        unused = len(self.num_samples) - self._num_used
        short = f"; {unused} are shorter than the shortest crop: never used" if unused else ""
        return (
            f"{len(self.num_samples)} utterances, {hours:.2f} h: {self.num_batches} batches{short}"
        )
