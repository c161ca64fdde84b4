"""Word and character error rates, with what they are made of and how sure they are.

Rates are sums of edits over sums of reference lengths. The interval is a bootstrap over utterances
(Bisani and Ney 2004): they are drawn again with replacement, and the middle 95 % of the rates of
such draws is given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import vocabulary
from dinosr_jax.data.text_files import nfc
from dinosr_jax.errors import UserError
from dinosr_jax.evaluation.wer.references import Pair
from dinosr_jax.training.ctc.word_errors import count_edits, marked

Normalise = Literal["librispeech", "lower", "none"]
Missing = Literal["error", "delete", "leave"]
_DRAWS = 1000


class RatesError(UserError):
    """There is nothing to compare, or an utterance was not recognised; the message says which."""


class Errors(NamedTuple):
    """Edits of some utterances, in words; `characters` and `character_errors` with spaces."""

    utterances: int
    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int

    @property
    def wer(self) -> float:
        """Word error rate; infinite where the references are empty and something was said."""
        return _rate(self.substitutions + self.deletions + self.insertions, self.words)

    @property
    def cer(self) -> float:
        """Character error rate."""
        return _rate(self.character_errors, self.characters)


class Rates(NamedTuple):
    """Error rates of all utterances, of each speaker, and the utterances with the most errors.

    `wer_interval` and `cer_interval` are the middle 95 % of the bootstrap.
    """

    errors: Errors
    wer_interval: tuple[float, float]
    cer_interval: tuple[float, float]
    speakers: Mapping[str, Errors]
    worst: tuple[tuple[str, str, str, int], ...]  # id, reference, hypothesis, word errors
    missing: tuple[str, ...]  # ids that were not recognised
    normalise: str


def _rate(errors: int, length: int) -> float:
    if length:
        return errors / length
    return float("inf") if errors else 0.0


def normaliser(kind: Normalise) -> Callable[[str], str]:
    """How both sides are spelt before they are compared.

    'librispeech': upper case, apostrophes and compatibility forms unified, punctuation and symbols
    read as spaces, as LibriSpeech's transcripts are written. 'lower': the same in lower case, for
    any language. 'none': only spaces, and accents apart from their letter, are unified.
    """
    if kind == "none":
        return lambda text: " ".join(nfc(text).split())
    if kind == "librispeech":
        return vocabulary.letters().normalise
    lower = vocabulary.Vocabulary((*vocabulary.SPECIAL, vocabulary.BOUNDARY, "'", "a"))
    return lower.normalise


def count(reference: str, hypothesis: str) -> Errors:
    """Errors of one utterance, normalised already."""
    words = reference.split()
    edits = count_edits(words, hypothesis.split())
    return Errors(1, len(words), *edits, len(reference), sum(count_edits(reference, hypothesis)))


def rates(
    pairs: Sequence[Pair],
    *,
    normalise: Normalise = "librispeech",
    missing: Missing = "error",
    seed: int = 0,
    num_worst: int = 5,
) -> Rates:
    """Error rates; RatesError where an utterance was not recognised, or none is left.

    `missing` says what an utterance is that was not recognised: an error, all deletions, or left
    out. `num_worst` of those with the most word errors are kept; `seed` is that of the bootstrap.
    """
    absent = [pair.reference.id for pair in pairs if pair.hypothesis is None]
    if absent and missing == "error":
        raise RatesError(
            f"{len(absent)} of {len(pairs)} utterances were not recognised, such as {absent[0]!r}; "
            "--missing=delete counts their words as deletions, --missing=leave leaves them out"
        )
    used = [p for p in pairs if p.hypothesis is not None or missing == "delete"]
    if not used:
        raise RatesError(f"none of the {len(pairs)} utterances of the reference was recognised")
    spell = normaliser(normalise)
    texts = [(spell(reference.text), spell(hypothesis or "")) for reference, hypothesis in used]
    table = np.asarray([count(*pair) for pair in texts])
    by_speaker: dict[str, list[int]] = {}
    for row, pair in enumerate(used):
        by_speaker.setdefault(pair.reference.speaker, []).append(row)
    total = lambda rows: Errors(*table[rows].sum(axis=0).tolist())
    edits = table[:, 2:5].sum(axis=1)
    worst = np.argsort(-edits, kind="stable")[:num_worst]
    return Rates(
        errors=total(slice(None)),
        wer_interval=interval(edits, table[:, 1], seed=seed),
        cer_interval=interval(table[:, 6], table[:, 5], seed=seed),
        speakers={speaker: total(rows) for speaker, rows in sorted(by_speaker.items())},
        worst=tuple(
            (used[row].reference.id, *texts[row], int(edits[row])) for row in worst if edits[row]
        ),
        missing=tuple(absent),
        normalise=normalise,
    )


def interval(errors: np.ndarray, lengths: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Middle 95 % of the rate over draws of utterances of `errors` [N] and `lengths` [N]."""
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(_DRAWS):
        rows = random.integers(0, len(errors), len(errors))
        drawn.append(_rate(int(errors[rows].sum()), int(lengths[rows].sum())))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def to_dict(result: Rates) -> dict[str, Any]:
    """The rates as plain values, for JSON; null where there is no word in the references."""
    finite = lambda rate: rate if math.isfinite(rate) else None  # JSON has no infinity
    row = lambda e: e._asdict() | {"wer": finite(e.wer), "cer": finite(e.cer)}
    keys = ("id", "reference", "hypothesis", "word_errors")
    return {
        **row(result.errors),
        "wer_interval": [finite(rate) for rate in result.wer_interval],
        "cer_interval": [finite(rate) for rate in result.cer_interval],
        "missing": list(result.missing),
        "normalise": result.normalise,
        "speakers": {speaker: row(errors) for speaker, errors in result.speakers.items()},
        "worst": [dict(zip(keys, one, strict=True)) for one in result.worst],
    }


def to_text(result: Rates) -> str:
    """The rates as lines to be printed."""
    e, percent = result.errors, lambda pair: f"{pair[0]:.1%} to {pair[1]:.1%}"
    lines = [
        f"WER {e.wer:.2%} (95 % of bootstrap draws: {percent(result.wer_interval)}): "
        f"{e.substitutions} substitutions, {e.deletions} deletions, {e.insertions} insertions in "
        f"{e.words} words",
        f"CER {e.cer:.2%} ({percent(result.cer_interval)}): {e.character_errors} edits in "
        f"{e.characters} characters",
        f"{e.utterances} utterances, {len(result.speakers)} speakers; normalised: "
        f"{result.normalise}; {len(result.missing)} not recognised",
    ]
    if len(result.speakers) > 1:
        lines.append("speaker: WER, CER, words")
        lines += [
            f"  {speaker or '(unknown)'}: {errors.wer:.2%}, {errors.cer:.2%}, {errors.words}"
            for speaker, errors in result.speakers.items()
        ]
    for id_, reference, hypothesis, edits in result.worst:
        lines.append(f"{id_}: {edits} word errors")
        lines += [f"  {line}" for line in marked(reference.split(), hypothesis.split())]
    return "\n".join(lines)
