"""What a task is learnt, chosen and tested on: recordings, and what is to be said of each."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinosr_jax.data import audio
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.inference.recordings import Recording, printable

PARTS = ("train", "valid", "test")


class Example(NamedTuple):
    """A recording, and what is to be said of it."""

    recording: Recording
    label: Any


class Examples(NamedTuple):
    """The parts of a corpus; `left_out` (name, reason); `data` says what it is, in a line."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    left_out: tuple[tuple[str, str], ...]
    data: str

    def everyone(self) -> list[Example]:
        """Of all parts."""
        return [*self.train, *self.valid, *self.test]

    def only(self, recordings: Iterable[Recording]) -> "Examples":
        """With these recordings alone, as they are now.

        Raises:
          LabelError: A part is empty.
        """
        known = {recording.id: recording for recording in recordings}
        parts = {
            name: tuple(
                example._replace(recording=known[example.recording.id])
                for example in getattr(self, name)
                if example.recording.id in known
            )
            for name in PARTS
        }
        if empty := [name for name, some in parts.items() if not some]:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out[:2])
            raise LabelError(
                f"{self.data}: found no recording that can be used in the part {empty[0]!r}, "
                f"expected some in {', '.join(PARTS)}" + (f" ({reasons})" if reasons else "")
            )
        return self._replace(**parts)

    def describe(self) -> str:
        """How many of each part, how long, and how many are left out: part of a line of text."""
        seconds = lambda some: sum(e.recording.num_samples or 0 for e in some) / audio.SAMPLE_RATE
        counts = [
            f"{len(some)} recordings, {seconds(some) / 60:.1f} minutes to {verb}"
            for verb, some in zip(("learn from", "choose on", "test on"), self, strict=False)
        ]
        out = f"; {len(self.left_out)} left out" if self.left_out else ""
        return f"{self.data}: {'; '.join(counts)}{out}"


def gather(
    parts: Mapping[str, Sequence[Example]],
    *,
    data: str,
    left_out: Sequence[tuple[str, str]] = (),
) -> Examples:
    """Parts of which every recording is in one, once, and is there; the others are `left_out`.

    `found` are those of each of `PARTS`, `data` says what it is, in a line. What is named twice
    counts for the later part, so that nothing is learnt that is tested.
    """
    kept: dict[str, list[Example]] = {name: [] for name in PARTS}
    gone, places = list(left_out), {}
    for part in reversed(PARTS):
        for example in parts.get(part, ()):
            source, id_ = example.recording.source, example.recording.id
            if id_ in places:
                gone.append((example.recording.name, f"named again, first in {places[id_]!r}"))
            elif isinstance(source, Path) and not source.is_file():
                gone.append((example.recording.name, "no such file"))
            else:
                places[id_] = part
                kept[part].append(example)
    return Examples(*(tuple(kept[name]) for name in PARTS), tuple(gone), data)


def at_path(path: Path, *, root: Path, label: Any) -> Example:
    """An example in a file; its id is the path below the root."""
    name = path.relative_to(root).as_posix()
    return Example(Recording(name, printable(str(path)), path), label)


def values(examples: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """The values of each place of the labels, in the order in which they occur."""
    return [list(dict.fromkeys(column)) for column in zip(*itertools.chain(examples), strict=True)]
