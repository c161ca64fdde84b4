"""Slot filling on Audio SNIPS: characters, and marks where a slot begins and ends, with CTC.

Shapes: U labels.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data.prepare.sources import is_audio
from dinosr_jax.data.text_files import nfc, read_text
from dinosr_jax.evaluation.probes.examples import PARTS, Example, Examples, gather
from dinosr_jax.evaluation.probes.head_training import HeadSettings, HeadTask
from dinosr_jax.evaluation.probes.phone_recognition import ctc_task
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.inference.recordings import Recording, printable

# the synthetic voices that SUPERB learns from, chooses on and tests on
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
TRANSCRIPTS, SLOTS = "all.iob.snips.txt", "slots.txt"
_CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
_PUNCTUATION = frozenset("?!.,;-")
_OUTSIDE = "O"


class Tagged(NamedTuple):
    """Words, and the slot of each: 'O' where it is in none."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def tokens(self) -> list[str]:
        """Characters and marks, B-x and E-x; neighbours of the same slot are one value."""
        pairs = [
            ("AND" if word == "&" else word, tag)
            for word, tag in zip(self.words, self.tags, strict=True)
            if word not in _PUNCTUATION
        ]
        tokens: list[str] = []
        for tag, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
            text = _letters(" ".join(word for word, _ in group))
            if text:
                marked = [f"B-{tag}", *text, f"E-{tag}"] if tag != _OUTSIDE else [*text]
                tokens += [*([" "] if tokens else []), *marked]
        return tokens


def _letters(text: str) -> str:
    """In capitals, without accents and what is no letter, apostrophe or space."""
    plain = unicodedata.normalize("NFKD", text.replace("’", "'")).upper()
    return " ".join("".join(c for c in plain if c in _CHARACTERS).split())


def to_text(tokens: Sequence[str]) -> str:
    """Tokens as `slot_errors` reads them."""
    mark = lambda t: f"{t} " if t[:2] == "B-" else f" {t}" if t[:2] == "E-" else t
    return "".join(map(mark, tokens))


def read_slots(data: Path, *, voices: str = "superb") -> Examples:
    """Reads Audio SNIPS as s3prl prepares it; what has no transcript is left out.

    Args:
      data: Folder of all.iob.snips.txt, slots.txt, and recordings in train/, valid/ and test/,
        each named as its transcript.
      voices: 'superb' for the published ones of each part, or 'all'.

    Raises:
      LabelError: There are no recordings of these voices, or a slot is not in slots.txt.
      TextError: A file cannot be read.
    """
    left_out: list[tuple[str, str]] = []
    known = [slot for slot in read_text(data / SLOTS).split() if slot != _OUTSIDE]
    transcripts = dict(_transcripts(data / TRANSCRIPTS, set(known), left_out))
    parts: dict[str, list[Example]] = {}
    for part in PARTS:
        there = [path for path in sorted((data / part).rglob("*")) if is_audio(path.name)]
        chosen_voice = lambda id_, part=part: voices == "all" or id_.split("-")[0] in SPEAKERS[part]
        chosen = [path for path in there if chosen_voice(path.stem)]
        if not chosen:
            raise LabelError(
                f"{data / part}: found {len(there)} recordings, and none of SUPERB's voices "
                f"({', '.join(SPEAKERS[part])}) such as {SPEAKERS[part][0]}-snips-{part}-0.wav"
                + ("; --voices=all takes all of them" if there else "")
            )
        spoken = {nfc(path.stem) for path in chosen}
        left_out += [
            (id_, f"a transcript without a recording in {part}/")
            for id_ in transcripts
            if id_.split("-")[2:3] == [part] and chosen_voice(id_) and id_ not in spoken
        ]
        examples = [
            Example(Recording(p.stem, printable(str(p)), p), transcripts.get(nfc(p.stem)))
            for p in chosen
        ]
        left_out += [(e.recording.name, "no transcript") for e in examples if e.label is None]
        parts[part] = [example for example in examples if example.label is not None]
    return gather(parts, data=f"{data}, voices: {voices}", left_out=left_out)


def _transcripts(
    path: Path, slots: set[str], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, Tagged]]:
    """Lines such as `Ivy-snips-train-0 BOS ADD IT EOS<tab>O O O AddToPlaylist`."""
    seen: set[str] = set()
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        id_, *rest = re.split("[ \t]", line.strip(), maxsplit=1)
        text, _, tags = "".join(rest).partition("\t")
        words, tags = text.split()[1:-1], tags.split()[1:-1]
        if not id_:
            continue
        where = f"{printable(str(path))}, line {number}"
        if id_ in seen:
            left_out.append((where, f"{id_} is listed again"))
        elif not words or len(words) != len(tags):
            left_out.append((where, f"found {len(words)} words and {len(tags)} slots"))
        else:
            seen.add(id_)
            plain = tuple(
                t if t in slots else t.removeprefix("B-").removeprefix("I-") for t in tags
            )
            if unknown := set(plain) - slots - {_OUTSIDE}:
                raise LabelError(f"{where}: {min(unknown)!r} is not among the slots of {SLOTS}")
            yield id_, Tagged(tuple(words), plain)


def fill_slots(
    examples: Examples, *, settings: HeadSettings
) -> tuple[HeadTask, Mapping[str, np.ndarray]]:
    """The task, and transcripts with slots as labels [U]: the F1 of slot types counts.

    Raises LabelError where a part has no slot.
    """
    tokens = {e.recording.id: e.label.tokens() for e in examples.everyone()}
    for part in PARTS:
        ids = [example.recording.id for example in getattr(examples, part)]
        if not any(values_of_slots(to_text(tokens[id_])) for id_ in ids):
            raise LabelError(f"{examples.data}: no utterance of the part {part!r} has a slot")
    marks = sorted({t for some in tokens.values() for t in some if t[:2] in ("B-", "E-")})
    symbols = ["<blank>", *_CHARACTERS, *marks]
    number = {symbol: i for i, symbol in enumerate(symbols)}
    spell = lambda labels: to_text([symbols[label] for label in labels])

    def measure(references: Sequence, hypotheses: Sequence) -> dict[str, float]:
        pair = [[spell(labels) for labels in some] for some in (references, hypotheses)]
        return {"f1": type_f1(*pair), "cer": value_cer(*pair)}

    labels = {id_: np.asarray([number[t] for t in some], np.int32) for id_, some in tokens.items()}
    how = {"settings": settings, "measure": measure, "chosen_by": "f1", "best": "most"}
    return ctc_task(len(symbols), **how), labels


_SLOT = re.compile(r"B-(\S+) (.+?) E-\1")  # as published: E-x also ends where more follows the x
_MARKS = re.compile(r"B-\S+ | E-\S+")


def values_of_slots(text: str) -> dict[str, list[str]]:
    """Values of every slot of a text, in order; marks of other slots inside of them go."""
    values: dict[str, list[str]] = {}
    for slot, value in _SLOT.findall(re.sub(" +", " ", text)):
        values.setdefault(slot, []).append(_MARKS.sub("", value))
    return values


def type_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Mean over the utterances of the F1 of the sets of slots; 1 where neither has any."""
    scores = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        expected, recognised = set(values_of_slots(reference)), set(values_of_slots(hypothesis))
        total = len(expected) + len(recognised)
        scores.append(2 * len(expected & recognised) / total if total else 1.0)
    return sum(scores) / len(scores)


def value_cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character error rate of the values: sum of edit distances over sum of lengths.

    Every value of a reference is compared with the nearest one of the same slot in the hypothesis,
    and with nothing where there is none. Values too many cost nothing. Raises LabelError where the
    references have no slot.
    """
    from rapidfuzz.distance import Levenshtein

    errors = total = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        recognised = values_of_slots(hypothesis)
        for slot, values in values_of_slots(reference).items():
            for value in values:
                others = recognised.get(slot, [""])
                errors += min(Levenshtein.distance(value, other) for other in others)
                total += len(value)
    if not total:
        raise LabelError(
            "the references hold no slot; an error rate of their values has no meaning"
        )
    return errors / total
