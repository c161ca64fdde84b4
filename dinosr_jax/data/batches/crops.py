"""The plan: (lengths, seed, step) -> one batch of record indices and crops. Pure NumPy.

Every utterance is cropped to one of at most 12 lengths, the rungs of a ladder: a training step is
compiled for each, and nothing is padded (the paper, section 4.1, crops a batch to its shortest
utterance). A batch holds utterances of one rung; what does not fill one moves down a rung. Where
one crop each loses more audio than `max_ladder_loss`, the fewest utterances that it takes are cut
in two, and each part is cropped. The number of batches of each rung follows from the lengths; which
utterances, which crops and in which order follows from (seed, epoch). Nothing depends on the number
of devices or hosts.

Shapes: N utterances, P pieces (an utterance, or a part of one), R rungs, B pieces of a batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data.batches.lengths import (
    FIELD,
    HOP,
    best_paths,
    lengths_of_frames,
    shortest_length,
)

SAMPLE_RATE = 16_000
_KEPT_EPOCHS = 2
_SHORTEST_PART = 2 * SAMPLE_RATE  # no utterance is cut into parts shorter than this


class Crops(NamedTuple):
    """One batch of crops of `num_samples` each."""

    indices: np.ndarray  # [B] int64, of the utterances
    starts: np.ndarray  # [B] int64, first samples
    num_samples: int


class Rung(NamedTuple):
    """One length of the ladder, its batch size, and how many batches an epoch has of it."""

    num_samples: int
    batch_size: int
    num_batches: int


def _ladder_loss(lengths: np.ndarray, *, rungs: tuple[int, ...]) -> int:
    """Samples lost when every length is cropped to the longest rung that it reaches."""
    reached = np.searchsorted(rungs, lengths, side="right")
    return int((lengths - np.concatenate([[0], rungs])[reached]).sum())


def ladders(lengths: np.ndarray, *, grid: np.ndarray, max_rungs: int) -> list[tuple[int, ...]]:
    """The ladders of 1, 2, ... rungs that lose the least audio; exact.

    Args:
      lengths: [N] int, of the utterances. Each is cropped to the longest rung that it reaches.
      grid: [G] int, ascending, the lengths that a rung may have.
      max_rungs: how many rungs at most.

    Returns:
      The rungs of each ladder, ascending, in samples.
    """
    bounds = np.concatenate([[0], grid, [np.iinfo(np.int64).max]])
    num_shorter = np.searchsorted(np.sort(lengths), bounds, side="left")
    between = num_shorter[None, :] - num_shorter[:, None]
    paths = best_paths(bounds[:, None] * between, most=min(max_rungs, len(grid)) + 1)
    return [tuple(int(bounds[node]) for node in path) for _, path in paths[1:]]


class _Pieces(NamedTuple):
    """What is cropped: whole utterances first, then first and second parts; arrays [P]."""

    utterances: np.ndarray
    lengths: np.ndarray
    num_whole: int


def _pieces(lengths: np.ndarray, *, rungs: tuple[int, ...], max_ladder_loss: float) -> _Pieces:
    """Cuts utterances in two until the loss is down to `max_ladder_loss`, most gain first."""
    everything = np.arange(len(lengths))
    excess = _ladder_loss(lengths, rungs=rungs) - max_ladder_loss * lengths.sum()
    parts = [rung for rung in rungs if rung >= _SHORTEST_PART]
    pairs = sorted({(a + b, a, b) for a in parts for b in parts if a <= b})
    if excess <= 0 or not pairs:
        return _Pieces(everything, lengths, len(lengths))
    sums, firsts, seconds = np.array([(0, 0, 0), *pairs]).T
    pair = np.searchsorted(sums, lengths, side="right") - 1
    single = np.concatenate([[0], rungs])[np.searchsorted(rungs, lengths, side="right")]
    gain = sums[pair] - single
    by_gain = np.argsort(-gain, kind="stable")
    enough = int(np.searchsorted(np.cumsum(gain[by_gain]), excess)) + 1
    cut = np.sort(by_gain[:enough][gain[by_gain[:enough]] > 0])
    whole = np.setdiff1d(everything, cut, assume_unique=True)
    return _Pieces(
        np.concatenate([whole, cut, cut]),
        np.concatenate([lengths[whole], firsts[pair[cut]], seconds[pair[cut]]]),
        len(whole),
    )


def plan_options(data_config: Any) -> dict[str, Any]:
    """The fields of a configuration's `data` that the plans take by name."""
    names = "max_batch_seconds", "max_seconds", "max_rungs", "batch_multiple", "max_ladder_loss"
    return {name: getattr(data_config, name) for name in names}


class BatchPlan:
    """All batches of a training run, as a pure function of (lengths, seed, step).

    Attributes:
      rungs: tuple of `Rung`, ascending; every rung has at least one batch an epoch.
      num_batches: batches an epoch, the same in every epoch.
      batch: step, from 0 on -> its `Crops`.
      max_samples: to which utterances are cropped before the ladder.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        *,
        seed: int,
        max_batch_seconds: float,
        max_seconds: float,
        batch_multiple: int = 8,
        max_rungs: int = 12,
        max_ladder_loss: float = 1.0,
        field: int = FIELD,
        hop: int = HOP,
    ):
        """Plans the batches.

        Args:
          num_samples: [N] int, lengths of the utterances in samples at 16 kHz.
          seed: 0 to 2**64 - 1.
          max_batch_seconds: audio in a batch at most, over all devices (fairseq: max_tokens).
          max_seconds: utterances are cropped to this (fairseq: max_sample_size), or to less where
            `batch_multiple` of them would not fit in a batch.
          batch_multiple: every batch size is a multiple of it.
          max_rungs: number of rungs at most.
          max_ladder_loss: share of the audio that cropping to rungs may lose before utterances are
            cut in two; 1 never cuts.
          field: samples that a frame sees.
          hop: samples from one frame to the next.

        Raises:
          ValueError: a parameter is out of range, or fewer than `batch_multiple` utterances are
            long enough.
        """
        self.num_samples, self.seed = np.asarray(num_samples, np.int64), int(seed)
        self.max_batch_seconds, self.max_seconds = max_batch_seconds, max_seconds
        self.batch_multiple = int(batch_multiple)
        self.field, self.hop = field, hop
        self._check_parameters(max_rungs)
        budget = int(max_batch_seconds * SAMPLE_RATE)
        self.max_samples = min(int(max_seconds * SAMPLE_RATE), budget // self.batch_multiple)
        grid = lengths_of_frames(self.max_samples, field=self.field, hop=self.hop)
        lengths = np.minimum(self.num_samples, self.max_samples)
        self._check_utterances(lengths, grid=grid)
        fill = functools.partial(_fill, budget=budget, multiple=self.batch_multiple)
        # One rung alone fills at least one batch at its best length, whatever the lengths are.
        choices = [(int(rung),) for rung in grid]
        choices += ladders(lengths, grid=grid, max_rungs=max_rungs)
        filled = [fill(lengths, rungs=rungs) for rungs in choices]
        self.rungs = max(filled, key=lambda rungs: (_kept(rungs), -len(rungs)))
        sizes = tuple(rung.num_samples for rung in self.rungs)
        self._pieces = _pieces(lengths, rungs=sizes, max_ladder_loss=max_ladder_loss)
        if len(self._pieces.lengths) > len(lengths):
            self.rungs = fill(self._pieces.lengths, rungs=sizes)
            sizes = tuple(rung.num_samples for rung in self.rungs)
        self.num_batches = sum(rung.num_batches for rung in self.rungs)
        self._rung_of_piece = np.searchsorted(sizes, self._pieces.lengths, side="right") - 1
        in_pieces = int(self._pieces.lengths.sum())
        self._ladder_loss = _ladder_loss(self._pieces.lengths, rungs=sizes)
        self._leftover_loss = in_pieces - self._ladder_loss - _kept(self.rungs)
        self._ladder_loss += int(lengths.sum()) - in_pieces
        self.batch = by_step(self._draw, num_batches=self.num_batches)

    def summary(self) -> str:
        """Describes ladder, batch sizes and what is lost, in lines to print."""
        total = int(self.num_samples.sum())
        capped = int(np.minimum(self.num_samples, self.max_samples).sum())
        num_short = int((self._rung_of_piece < 0).sum())
        limit = f"{self.max_samples / SAMPLE_RATE:g} s"
        if self.max_samples < int(self.max_seconds * SAMPLE_RATE):
            limit += (
                f" (not max_seconds = {self.max_seconds:g}: a batch of {self.batch_multiple} "
                f"must fit in max_batch_seconds = {self.max_batch_seconds:g})"
            )
        lines = [
            f"{len(self.num_samples)} utterances, {total / SAMPLE_RATE / 3600:.2f} h: "
            f"{self.num_batches} batches an epoch, {len(self.rungs)} shapes",
            "  seconds  frames  batch size  batch seconds  batches an epoch",
        ]
        for samples, size, number in self.rungs:
            seconds, frames = samples / SAMPLE_RATE, (samples - self.field) // self.hop + 1
            row = f"  {seconds:7.3f}  {frames:6d}  {size:10d}  {seconds * size:13.1f}"
            lines.append(f"{row}  {number:16d}")
        lines += [
            f"  utterances over {limit} are cropped to it: {1 - capped / total:.1%} of the audio",
            f"  of the rest, an epoch loses {self._ladder_loss / capped:.1%} to the ladder"
            f" and {self._leftover_loss / capped:.1%} to leftovers",
        ]
        if num_cut := len(self._pieces.lengths) - len(self.num_samples):
            share = num_cut / len(self.num_samples)
            lines.append(f"  {num_cut} utterances ({share:.0%}) are cut in two to lose no more")
        if num_short:
            lines.append(f"  {num_short} utterances are shorter than the shortest rung: never used")
        return "\n".join(lines)

    def _draw(self, number: int) -> list[Crops]:
        """The batches of one epoch, in order."""
        random = epoch_generator(self.seed, number)
        firsts, rooms = self._place_pieces(random)
        batches: list[Crops] = []
        leftover = np.empty(0, np.int64)
        for place, rung in reversed(list(enumerate(self.rungs))):
            members = np.flatnonzero(self._rung_of_piece == place)
            pool = random.permutation(np.concatenate([leftover, members]))
            num_taken = rung.num_batches * rung.batch_size
            taken, leftover = pool[:num_taken], pool[num_taken:]
            starts = firsts[taken] + random.integers(0, rooms[taken] - rung.num_samples + 1)
            rows = np.stack([self._pieces.utterances[taken], starts])
            parts = np.split(rows, rung.num_batches, axis=1)
            batches = [Crops(*part, rung.num_samples) for part in parts] + batches
        return [batches[place] for place in random.permutation(self.num_batches)]

    def _place_pieces(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """First sample and number of samples [P] of the stretch in which a piece is cropped.

        An utterance is cut at a random place that leaves room for both parts, in random order.
        """
        utterances, lengths, num_whole = self._pieces
        firsts, rooms = np.zeros_like(utterances), self.num_samples[utterances]
        if num_whole < len(utterances):
            one, other = lengths[num_whole:].reshape(2, -1)
            total = rooms[num_whole : num_whole + len(one)].copy()
            room = one + random.integers(0, total - one - other + 1)
            swapped = random.integers(0, 2, len(one)).astype(bool)
            rooms[num_whole:] = np.concatenate([room, total - room])
            firsts[num_whole:] = np.concatenate(
                [np.where(swapped, total - room, 0), np.where(swapped, 0, room)]
            )
        return firsts, rooms

    def _check_parameters(self, max_rungs: int) -> None:
        """Refuses parameters that no plan can be made from."""
        if self.num_samples.ndim != 1 or (self.num_samples < 0).any():
            raise ValueError(
                f"num_samples has shape {self.num_samples.shape}, expected one length (0 or more) "
                "an utterance."
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2**64 - 1.")
        names = ("max_batch_seconds", "max_seconds", "batch_multiple")
        for name in (*names, "max_rungs"):
            value = max_rungs if name == "max_rungs" else getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} is {value}, expected more than 0.")

    def _check_utterances(self, lengths: np.ndarray, *, grid: np.ndarray) -> None:
        """Refuses a budget without room for one batch, or too few utterances for one."""
        if not len(grid):
            shortest = shortest_length(field=self.field, hop=self.hop)
            raise ValueError(
                f"a batch of batch_multiple = {self.batch_multiple} utterances in "
                f"max_batch_seconds = {self.max_batch_seconds:g}, cropped to max_seconds = "
                f"{self.max_seconds:g}, leaves {self.max_samples} samples each; the shortest crop "
                f"is {shortest}. Raise max_batch_seconds or lower batch_multiple."
            )
        num_usable = int((lengths >= grid[0]).sum())
        if num_usable < self.batch_multiple:
            smaller = f"--config.data.batch_multiple={num_usable} (of which the number of devices "
            smaller += "is a divisor), " if num_usable else ""
            raise ValueError(
                f"{num_usable} utterances of at least {grid[0] / SAMPLE_RATE:g} s were found, "
                f"expected at least batch_multiple = {self.batch_multiple} to fill a batch. "
                f"Use more recordings, {smaller}or a lower --config.data.min_seconds."
            )


def _fill(
    lengths: np.ndarray, *, rungs: tuple[int, ...], budget: int, multiple: int
) -> tuple[Rung, ...]:
    """Counts the batches of each rung; what does not fill one moves down. Empty rungs go."""
    counts = np.bincount(np.searchsorted(rungs, lengths, side="right"), minlength=len(rungs) + 1)
    filled, leftover = [], 0
    for rung, count in zip(reversed(rungs), reversed(counts[1:]), strict=True):
        available = int(count) + leftover
        largest = min(budget // rung, available)
        batch_size = largest - largest % multiple
        num_batches = available // batch_size if batch_size else 0
        leftover = available - num_batches * batch_size
        if num_batches:
            filled.append(Rung(int(rung), batch_size, num_batches))
    return tuple(reversed(filled))


def _kept(rungs: tuple[Rung, ...]) -> int:
    """Samples of audio in an epoch."""
    return sum(rung.num_samples * rung.batch_size * rung.num_batches for rung in rungs)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The random numbers of an epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))


def by_step(draw: Callable[[int], list[Crops]], *, num_batches: int) -> Callable[[int], Crops]:
    """The batches of all steps, from 0 on; threads may share them.

    Args:
      draw: gives the batches of an epoch, from its number alone.
      num_batches: batches an epoch.

    Returns:
      Step -> its batch; ValueError where the step is negative.
    """
    epoch = functools.lru_cache(_KEPT_EPOCHS)(draw)

    def batch(step: int) -> Crops:
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more: steps count from 0.")
        number, position = divmod(int(step), num_batches)
        return epoch(number)[position]

    return batch
