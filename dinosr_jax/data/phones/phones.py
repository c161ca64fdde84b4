"""Phones in time: in order, under one set of names, and as a label of every frame.

Shapes: T frames.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dinosr_jax.data.phones.textgrid import Span
from dinosr_jax.data.text_files import TextError, nfc, read_text

Stress = Literal["strip", "keep"]
SILENCE = "SIL"
_SILENCES = {"", "sil", "sp", "<eps>", "<sil>"}
_STRESSED = re.compile(r"((?:A[AEHOWY]|E[HRY]|I[HY]|O[WY]|U[HW]))[0-2]", re.IGNORECASE)
_OVERLAP = 1e-6  # seconds; what rounding makes of a boundary that two phones share


class Phone(NamedTuple):
    """A phone from `start` to `end`, in seconds."""

    start: float
    end: float
    label: str


def frame_labels(
    phones: Sequence[Phone], *, num_frames: int, step: float = 0.01, first: float | None = None
) -> np.ndarray:
    """The labels [T] at the centres of frames; 'SIL' where there is no phone.

    Args:
      phones: Of one utterance, in order.
      num_frames: T.
      step: Between the centres of frames, in seconds.
      first: Centre of the first frame in seconds; None is step / 2.
    """
    labels = np.asarray([phone.label for phone in phones] + [SILENCE])
    return labels[frame_phones(phones, num_frames=num_frames, step=step, first=first)]


def frame_phones(
    phones: Sequence[Phone], *, num_frames: int, step: float = 0.01, first: float | None = None
) -> np.ndarray:
    """Indices [T] of the `phones` at the centres of frames, -1 for none; as `frame_labels`."""
    first = step / 2 if first is None else first
    centres = np.rint((first + step * np.arange(num_frames)) * 1e9)  # nanoseconds: no float error
    times = np.rint(np.asarray([phone[:2] for phone in phones]).reshape(-1, 2) * 1e9)
    last = np.searchsorted(times[:, 0], centres, side="right") - 1
    ends = np.append(times[:, 1], -np.inf)  # of index -1, too
    return np.where(centres < ends[last], last, -1)


def count_frames(phones: Sequence[Phone], *, step: float = 0.01) -> int:
    """T: how many frames have their centre before the end of the last phone."""
    end = round(phones[-1].end * 1e9) if phones else 0
    return max(0, math.ceil(round(end / (step * 1e9) - 0.5, 6)))


@functools.lru_cache(maxsize=10_000)
def clean_label(text: str, *, stress: Stress) -> str:
    """SIL for every name of silence, SPN for spoken noise; with 'strip' AH for AH0."""
    text = nfc(text.strip())
    if text.lower() in _SILENCES:
        return SILENCE
    if text.lower() == "spn":
        return "SPN"
    stressed = _STRESSED.fullmatch(text)
    return stressed[1] if stressed and stress == "strip" else text


def read_lexicon(path: Path, *, stress: Stress) -> dict[str, list[str]]:
    """Words, in upper case, and their phones, of a file with a word and its phones a line.

    Of several pronunciations the first counts, as in SUPERB. Raises TextError as `read_text`.
    """
    words: dict[str, list[str]] = {}
    for line in read_text(path).split("\n"):
        if (parts := line.split())[1:]:
            phones = [clean_label(part, stress=stress) for part in parts[1:]]
            words.setdefault(nfc(parts[0].upper()), phones)
    return words


def in_order(
    id_: str, spans: Iterable[Span], *, path: Path, named: Callable[[str], str]
) -> tuple[Phone, ...]:
    """Phones of the utterance `id_` of a file from its intervals, sorted; `named` names labels.

    Raises:
      TextError: Times that are no numbers, negative, backwards, or overlap.
    """

    def fail(span: Span, what: str) -> None:
        raise TextError(f"{path}: line {span.line}: {id_}: found {what}")

    spans = list(spans)
    for span in spans:
        if not (math.isfinite(span.start) and math.isfinite(span.end)):
            fail(span, f"times {span.start} and {span.end}, expected numbers")
        if span.start < 0:
            fail(span, f"a start of {span.start} s, expected 0 or later")
        if span.end <= span.start:
            interval = f"an interval from {span.start} to {span.end} s"
            fail(span, f"{interval}, expected an end after the start")
    ordered: list[Phone] = []
    before = None
    for span in sorted(spans):
        start = span.start
        if before is not None and start < before.end:
            if start < before.end - _OVERLAP or span.end <= before.end:
                fail(
                    span,
                    f"{span.text!r} from {span.start} to {span.end} s, which overlaps "
                    f"{before.text!r} to {before.end} s of line {before.line}; expected one phone "
                    "at a time (is the utterance there twice?)",
                )
            start = before.end
        ordered.append(Phone(start, span.end, named(span.text)))
        before = span
    return tuple(ordered)
