"""Phone recognition with CTC on frozen features, as SUPERB has it (s3prl's ctc/libriphone.yaml).

The softmax-weighted sum of all layers, a linear projection to 256, a linear classifier, CTC. What
is learnt with CTC has the blank as output 0.

Shapes: B batch, T frames, P phones and the blank, U labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.data.phones.phones import SILENCE, Phone
from dinosr_jax.data.vocabulary import frames_needed
from dinosr_jax.evaluation.probes.examples import Examples
from dinosr_jax.evaluation.probes.head_training import (
    FeatureBatch,
    HeadSettings,
    HeadTask,
    mean_of_rows,
)
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.objective.ctc import best_path, ctc_loss

Array = jax.Array


def spoken(phones: Sequence[Phone]) -> list[str]:
    """The phones that are said, in order: silence is none, as in SUPERB's lexicon."""
    return [phone.label for phone in phones if phone.label != SILENCE]


def encode(
    sequences: Mapping[str, Sequence[str]], *, phones: Sequence[str]
) -> dict[str, np.ndarray]:
    """Phones as numbers from 1; raises LabelError where one is not among `phones`."""
    number = {phone: i for i, phone in enumerate(phones, start=1)}
    for id_, sequence in sequences.items():
        if unknown := [phone for phone in sequence if phone not in number]:
            raise LabelError(
                f"{id_}: found the phone {unknown[0]!r}, expected one of {len(phones)} others"
            )
    return {
        id_: np.asarray([number[phone] for phone in sequence], np.int32)
        for id_, sequence in sequences.items()
    }


def error_rate(references: Sequence[Sequence], hypotheses: Sequence[Sequence]) -> float:
    """Sum of edit distances over sum of lengths; LabelError where the references are empty."""
    from rapidfuzz.distance import Levenshtein

    total = sum(map(len, references))
    if not total:
        raise LabelError("the references hold no label; an error rate has no meaning")
    pairs = zip(references, hypotheses, strict=True)
    return sum(Levenshtein.distance(list(r), list(h)) for r, h in pairs) / total


def loss(logits: Array, batch: FeatureBatch) -> Array:
    """CTC: mean over the utterances of the loss by label (torch's default, which SUPERB uses)."""
    padding_mask = jnp.arange(logits.shape[1])[None] >= batch.lengths[:, None]
    each = ctc_loss(logits, padding_mask, batch.labels, batch.label_lengths)
    return mean_of_rows(each / jnp.maximum(batch.label_lengths, 1), batch)


def ctc_task(
    num_symbols: int,
    *,
    settings: HeadSettings,
    measure: Callable[[Sequence[np.ndarray], Sequence[Any]], Mapping[str, float]],
    chosen_by: str,
    best: str = "least",
) -> HeadTask:
    """What is learnt with CTC: sequences of symbols, `num_symbols` with the blank.

    `measure` compares labels with those of the best path; its metric `chosen_by` counts on the
    validation part: the `best` of it. Utterances without labels, or with fewer frames than they
    need, do not fit.
    """
    return HeadTask(
        settings.head(num_symbols),
        loss,
        read=best_path,
        measure=measure,
        chosen_by=chosen_by,
        best=best,
        fits=lambda labels, frames: 0 < frames_needed(labels) <= frames,
    )


def recognise(
    examples: Examples, *, settings: HeadSettings
) -> tuple[HeadTask, Mapping[str, np.ndarray]]:
    """The task, and as labels [U] the phones of the examples, in order, as numbers."""
    spoken_phones = {example.recording.id: example.label for example in examples.everyone()}
    phones = sorted({phone for sequence in spoken_phones.values() for phone in sequence})
    return phones_task(len(phones), settings=settings), encode(spoken_phones, phones=phones)


def phones_task(num_phones: int, *, settings: HeadSettings) -> HeadTask:
    """Phone recognition with so many phones, without the blank: the phone error rate counts."""
    measure = lambda references, hypotheses: {"per": error_rate(references, hypotheses)}
    return ctc_task(num_phones + 1, settings=settings, measure=measure, chosen_by="per")
