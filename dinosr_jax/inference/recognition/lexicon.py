"""Words that beam search looks for, and how they are spelt: of a lexicon, or of an n-gram."""

import functools
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dinosr_jax.data.text_files import MAX_UNPACKED_BYTES, nfc, read_text
from dinosr_jax.data.vocabulary import BOUNDARY, SPECIAL, Vocabulary
from dinosr_jax.errors import UserError

_MAX_LINE_BYTES = 2**20
_NOT_WORDS = {"<s>", "</s>", "<unk>", "<UNK>"}


class Lexicon(NamedTuple):
    """Spellings of words, each ends with |; and the words that cannot be spelt, left out."""

    spellings: dict[str, list[list[str]]]
    left_out: tuple[str, ...]

    def note(self) -> str:
        """The message about the words left out; '' where there are none."""
        if not self.left_out:
            return ""
        total = len(self.left_out) + len(self.spellings)
        some = ", ".join(self.left_out[:3]) + (" ..." if len(self.left_out) > 3 else "")
        return f"{len(self.left_out)} of {total} words cannot be spelt and are left out: {some}"


def read_lexicon(path: Path, vocabulary: Vocabulary) -> Lexicon:
    """Words and their spellings, as librispeech_lexicon.lst has them.

    A line is a word, then its symbols with spaces between; | at the end of each. Spellings with
    symbols that the vocabulary has not are left out.

    Raises:
      UserError: It cannot be read, or no word fits the vocabulary.
    """
    _needs_boundary(vocabulary)
    spellings: dict[str, list[list[str]]] = {}
    symbols, lines, left_out = _spoken(vocabulary), 0, []
    for line in read_text(path, letters="as written").split("\n"):  # words are the n-gram's
        word, *spelling = line.split() or [""]
        lines, spelling = lines + bool(word), list(map(nfc, spelling))
        if set(spelling) <= symbols.keys() and set(spelling) - {BOUNDARY}:
            spelling = [symbols[symbol] for symbol in spelling]
            spelling = spelling if spelling[-1] == BOUNDARY else [*spelling, BOUNDARY]
            known = spellings.setdefault(word, [])
            known.extend([spelling] if spelling not in known else [])
        elif word:
            left_out.append(word)
    if not spellings:
        raise UserError(f"{path}: {_none(lines, vocabulary)}; expected lines such as: TEA T E A |")
    return Lexicon(spellings, tuple(left_out))


def spell(words: Sequence[str], vocabulary: Vocabulary, *, path: Path) -> Lexicon:
    """A lexicon of words, those of an n-gram, as the vocabulary writes them.

    Raises:
      UserError: None can be written.
    """
    _needs_boundary(vocabulary)
    symbols = _spoken(vocabulary)
    spelt = {word: vocabulary.normalise(word) for word in words}
    spellings = {
        word: [[*map(symbols.get, text), BOUNDARY]]
        for word, text in spelt.items()
        if text and set(text) <= symbols.keys()
    }
    if not spellings:
        raise UserError(f"{path}: {_none(len(words), vocabulary)}")
    return Lexicon(spellings, tuple(word for word in words if word not in spellings))


def _spoken(vocabulary: Vocabulary) -> dict[str, str]:
    """Symbols as the vocabulary writes them, by what they look like."""
    return {nfc(symbol): symbol for symbol in vocabulary.symbols if symbol not in SPECIAL}


def _none(number: int, vocabulary: Vocabulary) -> str:
    some = " ".join(vocabulary.symbols[len(SPECIAL) : 14])
    return (
        f"none of its {number} words can be spelt with the symbols of the recogniser ({some} ...)"
    )


def _needs_boundary(vocabulary: Vocabulary) -> None:
    if not vocabulary.of_characters:
        raise UserError(
            "a lexicon needs a recogniser of characters with a word boundary (|); of phones, take "
            "an n-gram of phones, or none"
        )


def is_of_symbols(path: Path, vocabulary: Vocabulary) -> bool:
    """Whether an n-gram is of the recogniser's symbols, as for search without a lexicon.

    One of characters has the word boundary among them; else its words are of one letter each.
    """
    words = set(arpa_words(path))
    return words <= set(vocabulary.symbols) and (BOUNDARY in words) == vocabulary.of_characters


def arpa_words(path: Path, *, binary: Sequence[str] | None = None) -> Sequence[str]:
    """The words of an n-gram in ARPA's form, plain or compressed.

    `binary` is the result for another form, such as KenLM's binary; None for a UserError.
    """
    try:
        words = list(_unigrams(path))
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, IndexError):
        words = []
    if not words and binary is None:
        raise UserError(
            f"{path}: is no n-gram in ARPA's form, and its words are not known without a lexicon; "
            "name one with --lexicon"
        )
    return words or binary


def _unigrams(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with (gzip.open if compressed else open)(path, "rb") as file:
        inside, size = False, 0
        for line in iter(functools.partial(file.readline, _MAX_LINE_BYTES), b""):
            size += len(line)
            if size > MAX_UNPACKED_BYTES:
                raise UserError(
                    f"{path}: found more than {MAX_UNPACKED_BYTES / 2**30:g} GiB before the end of "
                    "its words; expected an n-gram in ARPA's form"
                )
            line = line.decode().strip()
            if line.startswith("\\"):
                if inside:
                    return
                inside = line == "\\1-grams:"
            elif inside and line:
                word = line.split()[1]
                if word not in _NOT_WORDS:
                    yield word
