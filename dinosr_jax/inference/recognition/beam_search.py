"""Beam search with an n-gram and a lexicon: fairseq's decoder, flashlight-text.

It searches for the words whose best path (or all paths, with log_add), language model and number
have the highest score:

  log p(path) + lm_weight * log10 p(words) + word_score * words + sil_weight * frames of |

Shapes: T frames, V symbols.
"""

import itertools
import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data.text_files import nfc, read_text
from dinosr_jax.data.vocabulary import BLANK, BOUNDARY, END, PADDING, UNKNOWN, Vocabulary
from dinosr_jax.errors import UserError
from dinosr_jax.inference.recognition.decoding import (
    Clock,
    Hypothesis,
    Word,
    path_spans,
    words_in_time,
)
from dinosr_jax.inference.recognition.lexicon import (
    Lexicon,
    arpa_words,
    is_of_symbols,
    read_lexicon,
    spell,
)

_UNKNOWN_WORD = "<unk>"
_IMPOSSIBLE = -1e6  # in place of log 0, which the decoder cannot add up
_INSTALL = (
    "beam search needs the package flashlight-text: pip install flashlight-text, or, from Python "
    "3.13, ufal-flashlight-text, the same with later wheels. --decoder=greedy does without"
)


class BeamSettings(NamedTuple):
    """Of the search, with fairseq's values (infer_kenlm.yaml).

    `lm` and `lexicon` are files, '' for none. `beam_tokens` symbols are tried in every frame, 0 for
    all. `unk_score` allows words that are not in the lexicon where it is not -inf.
    """

    lm: str | Path = ""
    lexicon: str | Path = ""
    beam: int = 500
    beam_tokens: int = 0
    beam_threshold: float = 100.0
    lm_weight: float = 2.0
    word_score: float = -1.0
    sil_weight: float = 0.0
    unk_score: float = -math.inf
    log_add: bool = False


def describe(settings: BeamSettings) -> dict[str, Any]:
    """The settings as plain values, for JSON; -inf is null."""
    values = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in settings._asdict().items()
    }
    return values | {"unk_score": None if settings.unk_score == -math.inf else settings.unk_score}


def read_settings(path: str | Path) -> dict[str, Any]:
    """Fields of `BeamSettings` from JSON, as `describe` and `sweep` write them; or UserError."""
    try:
        values = json.loads(read_text(path))
        values = dict(values.get("settings", values))
        unknown = set(values) - set(BeamSettings._fields)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as settings of the decoder ({error})") from None
    if unknown:
        raise UserError(
            f"{path}: found the field {sorted(unknown)[0]!r}, expected some of "
            f"{', '.join(BeamSettings._fields)}"
        )
    if values.get("unk_score", 0) is None:
        values["unk_score"] = -math.inf
    return values


def check(settings: BeamSettings) -> None:
    """Raises UserError where a value is out of range, or a file is not there."""
    for name in ("lm", "lexicon"):
        path = getattr(settings, name)
        if not isinstance(path, str | Path):
            raise UserError(f"{name}: found {path!r}, expected the path of a file, or ''")
        if path and not Path(path).is_file():
            raise UserError(f"{name}: {path}: no such file")
    for name, lowest in (("beam", 1), ("beam_tokens", 0)):
        value = getattr(settings, name)
        if type(value) is not int or not lowest <= value < 2**31:
            raise UserError(f"{name}: found {value!r}, expected a whole number from {lowest}")
    for name in ("beam_threshold", "lm_weight", "word_score", "sil_weight", "unk_score"):
        value = getattr(settings, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        boundless = {"beam_threshold": math.inf, "unk_score": -math.inf}.get(name)
        if not number or not (math.isfinite(value) or value == boundless):
            raise UserError(f"{name}: found {value!r}, expected a number")
    if settings.beam_threshold < 0:
        raise UserError(f"beam_threshold: found {settings.beam_threshold}, expected 0 or more")
    if type(settings.log_add) is not bool:
        raise UserError(f"log_add: found {settings.log_add!r}, expected true or false")


def lexicon_of(vocabulary: Vocabulary, settings: BeamSettings) -> Lexicon | None:
    """The words that are searched for: of the lexicon, or else of the n-gram.

    Returns:
      None where symbols are searched for: without either, or with an n-gram of symbols.

    Raises:
      UserError: A setting is out of range, a file cannot be read or does not fit the vocabulary,
        or the n-gram has none of the words of the lexicon; or the package is not there.
    """
    check(settings)
    _library()
    lm, lexicon = Path(settings.lm), Path(settings.lexicon)
    if not settings.lexicon:
        if not settings.lm or is_of_symbols(lm, vocabulary):
            return None
        return spell(arpa_words(lm), vocabulary, path=lm)
    words = read_lexicon(lexicon, vocabulary)
    known = set(arpa_words(lm, binary=())) if settings.lm else set()
    written = {nfc(word): word for word in known}  # as the n-gram writes them
    spellings = {written.get(nfc(word), word): how for word, how in words.spellings.items()}
    words = words._replace(spellings=spellings)
    if known and not known & words.spellings.keys():
        some = [next(iter(names)) for names in (words.spellings, sorted(known))]
        raise UserError(
            f"{lexicon}: {lm} has none of its words ({some[0]} ..., against {some[1]} ...): "
            "expected both in the same case"
        )
    return words


class BeamSearch:
    """A decoder (`decoding.Decoder`). Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, clock: Clock, settings: BeamSettings):
        """Reads language model and lexicon; raises UserError as `lexicon_of`."""
        lexicon = lexicon_of(vocabulary, settings)
        library, lm = _library(), str(settings.lm)
        self.settings, self._vocabulary, self._clock = settings, vocabulary, clock
        self._of_this_thread = threading.local()
        words = [*lexicon.spellings, _UNKNOWN_WORD] if lexicon else vocabulary.symbols
        known = _dictionary(library, words)
        self._words = known if lexicon else None
        try:
            self._lm = library.kenlm.KenLM(lm, known) if lm else library.decoder.ZeroLM()
        except (RuntimeError, UnicodeDecodeError) as error:  # its reasons quote the file
            reason = (str(error).strip() or "no reason given").splitlines()[-1]
            raise UserError(f"{lm}: cannot be read as an n-gram: {reason[:200]}") from None
        self._trie = self._make_trie(library, lexicon.spellings) if lexicon else None

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
        """Decodes log-probabilities [T, V]; its score is that of the search."""
        emissions, width = np.asarray(emissions), len(self._vocabulary.symbols)
        if emissions.ndim != 2 or emissions.shape[1] != width:
            raise ValueError(f"emissions: found {emissions.shape}, expected [frames, {width}]")
        if np.isnan(emissions).any() or (emissions == np.inf).any():
            raise ValueError("emissions: found NaN or infinity, expected log-probabilities")
        if not len(emissions):
            return Hypothesis("", (), 0.0)
        emissions = np.ascontiguousarray(np.maximum(emissions, _IMPOSSIBLE), np.float32)
        (best, *_) = self._decoder().decode(emissions.ctypes.data, *emissions.shape)
        frames = slice(1, len(emissions) + 1)  # between its own start and end
        path = np.asarray(best.tokens[frames])
        path = np.where(np.isin(path, (PADDING, END)), BLANK, path)
        if self._trie is None:
            words = words_in_time(path_spans(path), self._vocabulary, self._clock)
        else:
            words = self._words_of(path, best.words[frames])
        return Hypothesis(" ".join(word.word for word in words), words, float(best.score))

    def _words_of(self, path: np.ndarray, numbers: Sequence[int]) -> tuple[Word, ...]:
        """Words of a path [T], from their numbers [T], which are where they end; -1 elsewhere.

        Numbers tell words apart that are spelt alike. A last word without its end is none.
        """
        words, first, symbols = [], 0, self._vocabulary.symbols
        silent = (symbols[BLANK], BOUNDARY)
        spoken = ~np.isin(path, [symbols.index(symbol) for symbol in silent])
        for frame in np.flatnonzero(np.asarray(numbers) >= 0).tolist():
            at = first + np.flatnonzero(spoken[first : frame + 1])
            word = self._words.get_entry(numbers[frame])
            if word == _UNKNOWN_WORD:
                runs = itertools.groupby(path[first : frame + 1].tolist())
                word = "".join(symbols[s] for s, _ in runs if symbols[s] not in silent)
            if len(at):
                words.append(Word(word, *self._clock.span(int(at[0]), int(at[-1]))))
            first = frame + 1
        return tuple(words)


def _library() -> Any:
    """The modules of flashlight-text, by name; or UserError."""
    import types

    try:
        from flashlight.lib.text import decoder, dictionary
        from flashlight.lib.text.decoder import kenlm
    except ImportError as error:
        raise UserError(f"{_INSTALL} ({error})") from None
    return types.SimpleNamespace(decoder=decoder, dictionary=dictionary, kenlm=kenlm)


def _dictionary(library: Any, entries: Sequence[str]) -> Any:
    """Entries by number; what is none of them is <unk>."""
    numbered = library.dictionary.Dictionary(list(entries))
    numbered.set_default_index(numbered.get_index(_UNKNOWN_WORD))
    return numbered
