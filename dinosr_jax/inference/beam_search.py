"""Beam search with an n-gram and a lexicon: fairseq's decoder, flashlight-text.

It searches for the words whose best path (or all paths, with log_add), language model and number
have the highest score:

  log p(path) + lm_weight * log10 p(words) + word_score * words + sil_weight * word boundaries

Shapes: T frames, V symbols.
"""

import gzip
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data.vocabulary import BLANK, BOUNDARY, END, PADDING, UNKNOWN, Vocabulary
from dinosr_jax.inference.decoding import Clock, Hypothesis, Word, path_spans, words_in_time

_UNKNOWN_WORD = "<unk>"
_NOT_WORDS = {"<s>", "</s>", _UNKNOWN_WORD, "<UNK>"}
_INSTALL = (
    "beam search needs the package flashlight-text (pip install flashlight-text; it has wheels for "
    "Python up to 3.12). --decoder=greedy does without"
)


class Settings(NamedTuple):
    """Of the search, with fairseq's names and values (infer_kenlm.yaml).

    `lm` and `lexicon` are files, '' for none. `beam_tokens` symbols are tried in every frame, 0 for
    all. `unk_score` allows words that are not in the lexicon where it is not -inf.
    """

    lm: str | Path = ""  # lmpath
    lexicon: str | Path = ""  # lexicon
    beam: int = 500  # beam
    beam_tokens: int = 0  # beamsizetoken
    beam_threshold: float = 100.0  # beamthreshold
    lm_weight: float = 2.0  # lmweight
    word_score: float = -1.0  # wordscore
    sil_weight: float = 0.0  # silweight
    unk_score: float = -math.inf  # unkweight
    log_add: bool = False  # logadd


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, for JSON; -inf is null."""
    values = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in settings._asdict().items()
    }
    return values | {"unk_score": None if settings.unk_score == -math.inf else settings.unk_score}


def read_settings(path: str | Path) -> dict[str, Any]:
    """Fields of `Settings` from JSON, as `describe` and `sweep` write them.

    Raises:
      ValueError: It is no JSON object of such fields.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values = values.get("settings", values)
        unknown = set(values) - set(Settings._fields)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as settings of the decoder ({error})") from None
    if unknown:
        raise ValueError(
            f"{path}: found the field {sorted(unknown)[0]!r}, expected some of "
            f"{', '.join(Settings._fields)}"
        )
    if values.get("unk_score", 0) is None:
        values["unk_score"] = -math.inf
    return values


def check(settings: Settings) -> None:
    """Raises ValueError where a value is out of range, or a file is not there."""
    for name in ("lm", "lexicon"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise ValueError(f"{name}: {path}: no such file")
    for name, lowest in (("beam", 1), ("beam_tokens", 0), ("beam_threshold", 0)):
        value = getattr(settings, name)
        if not value >= lowest:
            raise ValueError(f"{name}: found {value}, expected {lowest} or more")
    for name in ("lm_weight", "word_score", "sil_weight"):
        if not math.isfinite(getattr(settings, name)):
            raise ValueError(f"{name}: found {getattr(settings, name)}, expected a number")


class BeamSearch:
    """A decoder (`decoding.Decoder`). Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, clock: Clock, settings: Settings):
        """Reads language model and lexicon.

        Raises:
          ValueError: They cannot be read, or do not fit the vocabulary; or a setting is out of
            range; or the package is not there.
        """
        check(settings)
        self.settings, self._vocabulary, self._clock = settings, vocabulary, clock
        self._of_this_thread = threading.local()
        library = _library()
        lm, lexicon = str(settings.lm), {}
        if settings.lexicon:
            lexicon = read_lexicon(Path(settings.lexicon), vocabulary)
        elif lm and not is_of_symbols(Path(lm), vocabulary):
            lexicon = spell(arpa_words(Path(lm)), vocabulary, path=Path(lm))
        self._words = _dictionary(library, [*lexicon, _UNKNOWN_WORD]) if lexicon else None
        known = self._words or _dictionary(library, vocabulary.symbols)
        try:
            self._lm = library.kenlm.KenLM(lm, known) if lm else library.decoder.ZeroLM()
        except RuntimeError as error:
            first = (str(error).strip() or "no reason given").splitlines()[0]
            raise ValueError(f"{lm}: cannot be read as an n-gram: {first}") from None
        self._trie = self._make_trie(library, lexicon) if lexicon else None

    def _make_trie(self, library: Any, lexicon: Mapping[str, Sequence[Sequence[str]]]) -> Any:
        numbers = {symbol: i for i, symbol in enumerate(self._vocabulary.symbols)}
        trie = library.decoder.Trie(len(numbers), numbers[BOUNDARY])
        start = self._lm.start(False)
        for word, spellings in lexicon.items():
            number = self._words.get_index(word)
            score = self._lm.score(start, number)[1]
            for spelling in spellings:
                trie.insert([numbers[symbol] for symbol in spelling], number, score)
        trie.smear(library.decoder.SmearingMode.MAX)
        return trie

    def with_weights(self, **changes: float) -> "BeamSearch":
        """The same language model and lexicon with other numbers."""
        other = object.__new__(BeamSearch)
        other.__dict__.update(self.__dict__)
        other.settings, other._of_this_thread = self.settings._replace(**changes), threading.local()
        check(other.settings)
        return other

    def _decoder(self) -> Any:
        """The library's, which holds its hypotheses: one for each thread."""
        if not hasattr(self._of_this_thread, "decoder"):
            self._of_this_thread.decoder = self._make_decoder()
        return self._of_this_thread.decoder

    def _make_decoder(self) -> Any:
        module, s, symbols = _library().decoder, self.settings, self._vocabulary.symbols
        options = {
            "beam_size": s.beam,
            "beam_size_token": s.beam_tokens or len(symbols),
            "beam_threshold": s.beam_threshold,
            "lm_weight": s.lm_weight,
            "sil_score": s.sil_weight,
            "log_add": s.log_add,
            "criterion_type": module.CriterionType.CTC,
        }
        silence = symbols.index(BOUNDARY) if BOUNDARY in symbols else UNKNOWN
        if self._trie is None:
            made = module.LexiconFreeDecoderOptions(**options)
            return module.LexiconFreeDecoder(made, self._lm, silence, BLANK, [])
        options |= {"word_score": s.word_score, "unk_score": s.unk_score}
        unknown = self._words.get_index(_UNKNOWN_WORD)
        made = module.LexiconDecoderOptions(**options)
        return module.LexiconDecoder(made, self._trie, self._lm, silence, BLANK, unknown, [], False)

    def __call__(self, emissions: np.ndarray) -> Hypothesis:
        """Decodes emissions [T, V]; its score is that of the search."""
        emissions = np.ascontiguousarray(emissions, np.float32)
        if not len(emissions):
            return Hypothesis("", (), 0.0)
        (best, *_) = self._decoder().decode(emissions.ctypes.data, *emissions.shape)
        path = np.asarray(best.tokens[1 : len(emissions) + 1])  # between its own start and end
        path = np.where(np.isin(path, (PADDING, END)), BLANK, path)
        words = words_in_time(path_spans(path), self._vocabulary, self._clock)
        if self._trie is not None:
            # numbers tell words apart that are spelt alike; a last word without its end is none
            said = [self._words.get_entry(number) for number in best.words if number >= 0]
            words = tuple(Word(w, *at[1:]) for w, at in zip(said, words, strict=False))
        return Hypothesis(" ".join(word.word for word in words), words, float(best.score))


def _library() -> Any:
    """The modules of flashlight-text, by name.

    Raises:
      ValueError: It is not there, or without KenLM.
    """
    import types

    try:
        from flashlight.lib.text import decoder, dictionary
        from flashlight.lib.text.decoder import kenlm
    except ImportError as error:
        raise ValueError(f"{_INSTALL} ({error})") from None
    return types.SimpleNamespace(decoder=decoder, dictionary=dictionary, kenlm=kenlm)


def _dictionary(library: Any, entries: Sequence[str]) -> Any:
    """Entries by number; what is none of them is <unk>."""
    found = library.dictionary.Dictionary(list(entries))
    found.set_default_index(found.get_index(_UNKNOWN_WORD))
    return found


def read_lexicon(path: Path, vocabulary: Vocabulary) -> dict[str, list[list[str]]]:
    """Words and their spellings, as librispeech_lexicon.lst has them.

    Args:
      path: A word, then its symbols with spaces between, a line; | at the end of each.
      vocabulary: Whose symbols they are; words with others are left out.

    Returns:
      Word -> spellings.

    Raises:
      ValueError: It cannot be read, or no word fits the vocabulary.
    """
    _needs_boundary(vocabulary)
    found: dict[str, list[list[str]]] = {}
    symbols, lines = set(vocabulary.symbols), 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                word, *spelling = line.split() or [""]
                lines += bool(spelling)
                if spelling and set(spelling) <= symbols:
                    spelling = spelling if spelling[-1] == BOUNDARY else [*spelling, BOUNDARY]
                    found.setdefault(word, []).append(spelling)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a lexicon ({error})") from None
    if not found:
        raise ValueError(
            f"{path}: none of its {lines} words can be spelt with the symbols of the recogniser "
            f"({' '.join(vocabulary.symbols[4:14])} ...); expected lines such as: TEA T E A |"
        )
    return found


def spell(words: Sequence[str], vocabulary: Vocabulary, *, path: Path) -> dict:
    """A lexicon of words as the vocabulary writes them; those that it cannot write are left out.

    Raises:
      ValueError: None can be written.
    """
    _needs_boundary(vocabulary)
    symbols = set(vocabulary.symbols)
    cased = lambda word: vocabulary.normalise(word)
    found = {w: [[*cased(w), BOUNDARY]] for w in words if cased(w) and set(cased(w)) <= symbols}
    if not found:
        raise ValueError(
            f"{path}: none of its {len(words)} words can be spelt with the symbols of the "
            f"recogniser ({' '.join(vocabulary.symbols[4:14])} ...)"
        )
    return found


def _needs_boundary(vocabulary: Vocabulary) -> None:
    if not vocabulary.of_characters:
        raise ValueError(
            "a lexicon needs a recogniser of characters with a word boundary (|); of phones, take "
            "an n-gram of phones, or none"
        )


def is_of_symbols(path: Path, vocabulary: Vocabulary) -> bool:
    """Whether an n-gram is of the recogniser's symbols, as for search without a lexicon."""
    words = arpa_words(path)
    return set(words) <= set(vocabulary.symbols)


def arpa_words(path: Path) -> list[str]:
    """The words of an n-gram in ARPA's form, plain or compressed.

    Raises:
      ValueError: It is in another form, such as KenLM's binary, which does not tell.
    """
    try:
        found = list(_unigrams(path))
    except (OSError, UnicodeDecodeError, EOFError, gzip.BadGzipFile):
        found = []
    if not found:
        raise ValueError(
            f"{path}: is no n-gram in ARPA's form, and its words are not known without a lexicon; "
            "name one with --lexicon"
        )
    return found


def _unigrams(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if compressed
        else path.open(encoding="utf-8") as file
    ):
        inside = False
        for line in file:
            line = line.strip()
            if line.startswith("\\"):
                if inside:
                    return
                inside = line == "\\1-grams:"
            elif inside and line:
                word = line.split()[1]
                if word not in _NOT_WORDS:
                    yield word


def beam_search(vocabulary: Vocabulary, clock: Clock, settings: Settings) -> BeamSearch:
    """The decoder of some settings; raises ValueError as `BeamSearch`."""
    return BeamSearch(vocabulary, clock, settings)
