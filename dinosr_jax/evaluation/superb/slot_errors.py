"""F1 of slot types and CER of slot values, as SUPERB defines them (s3prl's ctc/metric.py).

A text with slots is written as `PLAY B-artist NINA SIMONE E-artist`: what is between B-x and the
next E-x is a value of the slot x.
"""

import re
from collections.abc import Sequence

from dinosr_jax.evaluation.utterances import LabelError

_SLOT = re.compile(r"B-(\S+) (.+?) E-\1")  # as published: E-x also ends where more follows the x
_MARKS = re.compile(r"B-\S+ | E-\S+")


def values_of_slots(text: str) -> dict[str, list[str]]:
    """Values of every slot of a text, in order; marks of other slots inside of them go."""
    found: dict[str, list[str]] = {}
    for slot, value in _SLOT.findall(re.sub(" +", " ", text)):
        found.setdefault(slot, []).append(_MARKS.sub("", value))
    return found


def type_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Mean over the utterances of the F1 of the sets of slots; 1 where neither has any.

    Args:
      references: Texts with slots.
      hypotheses: The same, as found.

    Returns:
      0 to 1.
    """
    scores = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        said, found = set(values_of_slots(reference)), set(values_of_slots(hypothesis))
        total = len(said) + len(found)
        scores.append(2 * len(said & found) / total if total else 1.0)
    return sum(scores) / len(scores)


def value_cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character error rate of the values: sum of edit distances over sum of lengths.

    Every value of a reference is compared with the nearest one, by its rate of errors, of the same
    slot in the hypothesis, and with nothing where there is none. Values too many cost nothing.

    Args:
      references: Texts with slots.
      hypotheses: The same, as found.

    Returns:
      0 or more.

    Raises:
      LabelError: The references have no slot.
    """
    from rapidfuzz.distance import Levenshtein

    errors = total = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        found = values_of_slots(hypothesis)
        for slot, said in values_of_slots(reference).items():
            for value in said:
                others = found.get(slot, [""])
                errors += min(Levenshtein.distance(value, other) for other in others)
                total += len(value)
    if not total:
        raise LabelError(
            "the references hold no slot; an error rate of their values has no meaning"
        )
    return errors / total
