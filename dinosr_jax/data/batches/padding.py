"""The plan for speech that must stay whole, as transcripts need it. Pure NumPy.

Every utterance is padded to one of at most 12 lengths, those that pad the least. What does not fill
a batch moves up a length. The last batch of the longest is filled with empty rows: an epoch has
every utterance once. Nothing depends on the number of devices or hosts.

Shapes: N utterances, B rows of a batch.
"""

import math

import numpy as np

from dinosr_jax.data.batches.crops import SAMPLE_RATE, Crops, Rung, by_step, epoch_generator
from dinosr_jax.data.batches.lengths import (
    FIELD,
    HOP,
    best_paths,
    lengths_of_frames,
    shortest_length,
)

EMPTY = -1  # index of a row that only fills its batch


def padded_lengths(
    num_samples: np.ndarray,
    *,
    max_rungs: int,
    price: float = 0.0,
    field: int = FIELD,
    hop: int = HOP,
) -> tuple[int, ...]:
    """The lengths, of `lengths_of_frames`, ascending, that pad num_samples [N] the least; exact.

    There are `max_rungs` at most, and each but the first saves `price` samples at least.
    """
    lengths = np.sort(np.asarray(num_samples, np.int64))
    shortest = shortest_length(field=field, hop=hop)
    step = shortest - field + hop
    above = max(-(-(int(lengths[-1]) - shortest) // step), 0) * step
    grid = np.append(0, lengths_of_frames(shortest + above, field=field, hop=hop))
    upto = np.searchsorted(lengths, grid, side="right")  # utterances that fit
    padded = grid[None, :] * (upto[None, :] - upto[:, None])  # what is longer than a, to b
    paths = best_paths(-padded, most=min(max_rungs, len(grid) - 1))
    paid = lambda path: (price * (len(path[1]) + 1) - path[0], len(path[1]))
    _, between = min(paths, key=paid)
    return tuple(int(grid[node]) for node in (*between, -1))


class PaddedPlan:
    """All batches of whole utterances, as a pure function of (lengths, seed, step).

    Attributes:
      rungs: tuple of `Rung`, ascending: length, batch size, batches an epoch.
      num_batches: batches an epoch, the same in every epoch.
      batch: step, from 0 on -> its `Crops`, with index -1 where a row is empty, and `starts` of 0.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        *,
        seed: int,
        max_batch_seconds: float,
        batch_multiple: int = 8,
        max_rungs: int = 12,
        field: int = FIELD,
        hop: int = HOP,
    ):
        """Plans the batches; arguments as of `BatchPlan`, padding counts as audio.

        Raises:
          ValueError: there is no utterance, or `batch_multiple` of the longest do not fit.
        """
        self.num_samples = np.asarray(num_samples, np.int64)
        self.seed = int(seed)
        if not len(self.num_samples):
            raise ValueError("no utterance is left; see what was left out, and why")
        budget, longest = int(max_batch_seconds * SAMPLE_RATE), int(self.num_samples.max())
        how = {"max_rungs": max_rungs, "field": field, "hop": hop}
        self._lengths = padded_lengths(self.num_samples, **how)
        if self._lengths[-1] * batch_multiple > budget:
            raise ValueError(
                f"max_batch_seconds = {max_batch_seconds:g} does not hold batch_multiple = "
                f"{batch_multiple} utterances as long as the longest, of "
                f"{longest / SAMPLE_RATE:.1f} s. Raise max_batch_seconds to "
                f"{-(-self._lengths[-1] * batch_multiple // SAMPLE_RATE)}, or lower batch_multiple "
                "or max_seconds"
            )
        self._rung_of = np.searchsorted(self._lengths, self.num_samples)
        self.rungs = self._fill(budget, batch_multiple)
        self.num_batches = sum(rung.num_batches for rung in self.rungs)
        self.batch = by_step(self._draw, num_batches=self.num_batches)

    def _fill(self, budget: int, multiple: int) -> tuple[Rung, ...]:
        """Counts the batches of each length; what does not fill one moves up."""
        counts = np.bincount(self._rung_of, minlength=len(self._lengths))
        filled, left = [], 0
        for place, (length, count) in enumerate(zip(self._lengths, counts, strict=True)):
            available, last = int(count) + left, place == len(self._lengths) - 1
            fits = budget // length // multiple * multiple
            number = -(-available // fits) if last else available // fits
            size = fits
            if last:  # as few empty rows as there can be
                size = math.ceil(math.ceil(available / number) / multiple) * multiple
            left = 0 if last else available - number * size
            filled.append(Rung(int(length), size, number))
        return tuple(filled)

    def _draw(self, number: int) -> list[Crops]:
        """The batches of one epoch, in order."""
        random = epoch_generator(self.seed, number)
        batches: list[Crops] = []
        left = np.empty(0, np.int64)
        for place, rung in enumerate(self.rungs):
            pool = np.concatenate([left, np.flatnonzero(self._rung_of == place)])
            pool = random.permutation(pool)
            taken = rung.num_batches * rung.batch_size
            left = pool[taken:]
            rows = np.pad(pool[:taken], (0, max(taken - len(pool), 0)), constant_values=EMPTY)
            for some in rows.reshape(rung.num_batches, rung.batch_size):
                batches.append(Crops(some, np.zeros_like(some), rung.num_samples))
        return [batches[i] for i in random.permutation(len(batches))]

    def summary(self) -> str:
        """Describes lengths, batch sizes and how much is padding, in lines to print."""
        total = int(self.num_samples.sum())
        used = [rung for rung in self.rungs if rung.num_batches]
        computed = sum(r.num_samples * r.batch_size * r.num_batches for r in used)
        lines = [
            f"{len(self.num_samples)} utterances, {total / SAMPLE_RATE / 3600:.2f} h: "
            f"{self.num_batches} batches an epoch, {len(used)} shapes",
            "  padded to s  batch size  batches an epoch",
        ]
        for rung in used:
            seconds = rung.num_samples / SAMPLE_RATE
            lines.append(f"  {seconds:11.3f}  {rung.batch_size:10d}  {rung.num_batches:16d}")
        lines.append(f"  {1 - total / computed:.0%} of what is computed is padding")
        return "\n".join(lines)
