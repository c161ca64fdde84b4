"""From emissions to text: what every decoder gives, and the greedy one, which needs nothing else.

A decoder is a function of emissions, log-probabilities [T, V] float32 of the symbols in every
frame, with the blank as number 0. Beam search with a language model is in `beam_search`.

Shapes: T frames, V symbols.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dinosr_jax.data.audio import SAMPLE_RATE
from dinosr_jax.data.vocabulary import BLANK, BOUNDARY, END, PADDING, Vocabulary


class Word(NamedTuple):
    """A word, or a phone, from `start` to `end`, in seconds."""

    word: str
    start: float
    end: float


class Hypothesis(NamedTuple):
    """A transcript: the text, its words in time, and its score (natural logarithm)."""

    text: str
    words: tuple[Word, ...]
    score: float


Decoder = Callable[[np.ndarray], Hypothesis]


class Clock(NamedTuple):
    """Which samples a frame of the network sees: `field` of them, `hop` further each time."""

    field: int
    hop: int

    def span(self, first: int, last: int) -> tuple[float, float]:
        """Seconds from the start of the hop of frame `first` to the end of that of `last`."""
        early = (self.field - self.hop) / 2
        at = lambda frame: round((frame * self.hop + early) / SAMPLE_RATE, 4)
        return at(first), at(last + 1)


def greedy(vocabulary: Vocabulary, clock: Clock) -> Decoder:
    """Best path: the most probable symbol of every frame; its score is that of the path.

    Its text is that of transformers and fairseq: two word boundaries with a blank between them are
    two spaces, which error rates read as one.
    """

    def decode(emissions: np.ndarray) -> Hypothesis:
        codes = emissions.argmax(axis=1)
        score = float(np.take_along_axis(emissions, codes[:, None], axis=1).sum())
        spans = path_spans(codes)
        words = words_in_time(spans, vocabulary, clock)
        text = vocabulary.decode([label for label, *_ in spans], one_space=False)
        return Hypothesis(text, words, score)

    return decode


def path_spans(codes: np.ndarray) -> list[tuple[int, int, int]]:
    """Label, first and last frame of every run of a path [T] that is no blank."""
    changes = np.flatnonzero(np.diff(codes)) + 1
    starts = np.concatenate([[0], changes]) if len(codes) else np.empty(0, int)
    ends = np.concatenate([changes, [len(codes)]]) - 1 if len(codes) else starts
    runs = zip(codes[starts].tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [run for run in runs if run[0] != BLANK]


def words_in_time(
    spans: Sequence[tuple[int, int, int]], vocabulary: Vocabulary, clock: Clock
) -> tuple[Word, ...]:
    """Words of (label, first, last frame); without a word boundary each label is one."""
    words, letters = [], []
    for label, first, last in [*spans, (None, 0, 0)]:
        if label in (BLANK, PADDING, END):
            continue
        symbol = None if label is None else vocabulary.symbols[label]
        ends = symbol is None or symbol == BOUNDARY or not vocabulary.of_characters
        if ends and letters:
            text = "".join(letter for letter, _, _ in letters)
            words.append(Word(text, *clock.span(letters[0][1], letters[-1][2])))
            letters = []
        if symbol is not None and symbol != BOUNDARY:
            letters.append((symbol, first, last))
    return tuple(words)
