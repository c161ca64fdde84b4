"""Symbols of a recogniser, and transcripts as sequences of them.

The first four are fairseq's: the CTC blank, padding, end and unknown. Words of letters end with a
word boundary each, as in fairseq's .ltr files; phones have none.

Shapes: U labels, V symbols.
"""

import collections
import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dinosr_jax.data.text_files import TextError, nfc, read_text
from dinosr_jax.errors import UserError

BLANK, PADDING, END, UNKNOWN = range(4)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BOUNDARY = "|"
_LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"  # in the order of fairseq's dict.ltr.txt
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


class VocabularyError(UserError):
    """A transcript or a list of symbols cannot be used; the message says why."""


class Vocabulary(NamedTuple):
    """V symbols; number 0 is the blank. With a word boundary they are characters, else phones."""

    symbols: tuple[str, ...]

    @property
    def of_characters(self) -> bool:
        """Whether words are spelt with single characters and end with a boundary."""
        return BOUNDARY in self.symbols

    def normalise(self, text: str) -> str:
        """A transcript as it is spelt with these symbols.

        Characters: the case of the symbols, compatibility forms and apostrophes unified (NFKC),
        other punctuation and signs become spaces; other letters and digits stay. Phones: spaces
        and accents unified (NFC).
        """
        if self.of_characters:
            known = set(map(nfc, self.symbols))
            text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
            text = text.upper() if _upper(self.symbols) else text.lower()
            drop = lambda c: c not in known and unicodedata.category(c)[0] in "PSZC"
            text = "".join(" " if drop(c) or c == BOUNDARY else c for c in text)
        return " ".join(nfc(text).split())

    def unknown(self, text: str) -> list[str]:
        """The tokens of a transcript that are no symbols, in order, once each."""
        tokens, numbers = self._tokens(text), _numbers(self.symbols)
        return list(dict.fromkeys(token for token in tokens if token not in numbers))

    def _tokens(self, text: str) -> list[str]:
        words = self.normalise(text).split()
        if not self.of_characters:
            return words
        return [c for word in words for c in [*word, BOUNDARY]]

    def encode(self, text: str, *, unknown: Literal["raise", "mark"] = "raise") -> np.ndarray:
        """A transcript as labels [U] int32; with 'mark', `<unk>` for what is no symbol.

        Raises:
          VocabularyError: It holds something that is no symbol.
        """
        missing = self.unknown(text)
        if missing and unknown == "raise":
            raise VocabularyError(
                f"{text[:60]!r}: found {missing[0]!r}, which is not among the {len(self.symbols)} "
                "symbols of the vocabulary"
            )
        numbers = _numbers(self.symbols)
        labels = [numbers.get(token, UNKNOWN) for token in self._tokens(text)]
        return np.asarray(labels, np.int32)

    def decode(self, labels: Sequence[int] | np.ndarray, *, one_space: bool = True) -> str:
        """Labels [U] as a transcript, without the blank, padding and end.

        Args:
          labels: [U].
          one_space: Between words, also where there are more word boundaries.
        """
        tokens = [self.symbols[label] for label in labels if label not in (BLANK, PADDING, END)]
        if not self.of_characters:
            return " ".join(tokens)
        text = "".join(" " if token == BOUNDARY else token for token in tokens)
        return " ".join(text.split()) if one_space else text.strip(" ")


@functools.lru_cache
def _numbers(symbols: tuple[str, ...]) -> dict[str, int]:
    return {nfc(symbol): i for i, symbol in enumerate(symbols) if i >= len(SPECIAL)}


@functools.lru_cache
def _upper(symbols: tuple[str, ...]) -> bool:
    return any(s.isupper() for s in symbols if len(s) == 1)


def frames_needed(labels: np.ndarray) -> int:
    """Least T of these labels with CTC: one each, and a blank between equal ones."""
    return len(labels) + int(np.sum(labels[1:] == labels[:-1]))


def letters() -> Vocabulary:
    """The 32 symbols of fairseq's English recognisers."""
    return Vocabulary((*SPECIAL, *_LETTERS))


def characters(texts: Iterable[str]) -> Vocabulary:
    """The lower-case characters of transcripts, without punctuation, the most frequent first.

    Raises:
      VocabularyError: There are none.
    """
    draft = Vocabulary((*SPECIAL, BOUNDARY, "'", "a"))
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(draft.normalise(text).replace(" ", ""))
    if not counts:
        raise VocabularyError("the transcripts are empty: there is nothing to recognise")
    ordered = sorted(counts, key=lambda c: (-counts[c], c))
    return Vocabulary((*SPECIAL, BOUNDARY, *ordered))


def phones(sequences: Iterable[Sequence[str]]) -> Vocabulary:
    """The phones of utterances, sorted.

    Raises:
      VocabularyError: There are none, or one is spelt like a special symbol.
    """
    labels = sorted({phone for sequence in sequences for phone in sequence})
    if not labels or set(labels) & {*SPECIAL, BOUNDARY}:
        raise VocabularyError(f"phones: found {labels[:5]}, expected labels such as AH or s")
    return Vocabulary((*SPECIAL, *labels))


def read_dictionary(path: str | Path) -> Vocabulary:
    """Reads fairseq's dict.ltr.txt: a symbol and its count a line, special ones not among them.

    Raises:
      VocabularyError: It is another file.
    """
    try:
        lines = read_text(path).split("\n")
    except TextError as error:
        raise VocabularyError(f"{error}; expected a dictionary such as dict.ltr.txt") from None
    symbols = [re.split("[ \t]", line.strip(" \t"))[0] for line in lines if line.strip()]
    if not symbols or len(set(symbols)) < len(symbols) or set(symbols) & set(SPECIAL):
        raise VocabularyError(
            f"{path}: expected a symbol and its count a line, as in fairseq's dict.ltr.txt, each "
            f"symbol once; found {len(symbols)} lines that begin with {symbols[:3]}"
        )
    return Vocabulary((*SPECIAL, *symbols))
