"""Keyword spotting and intent classification: one answer, or several, an utterance.

SUPERB's head: projection, mean over the frames, linear; cross-entropy.

Shapes: B batch, K questions, C outputs.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.evaluation.probes.examples import Examples, values
from dinosr_jax.evaluation.probes.head_training import (
    FeatureBatch,
    HeadSettings,
    HeadTask,
    mean_of_rows,
)

Array = jax.Array


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Which outputs are of which question."""
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]


def loss(logits: Array, batch: FeatureBatch, *, sizes: Sequence[int]) -> Array:
    """Cross-entropy summed over the questions, as a mean over the real rows.

    `logits` [B, C] are those of the first question first; question k has `sizes[k]` answers.
    """
    each = [
        optax.softmax_cross_entropy_with_integer_labels(logits[:, own], batch.labels[:, k])
        for k, own in enumerate(_slices(sizes))
    ]
    return mean_of_rows(jnp.stack(each).sum(axis=0), batch)


def accuracy(references: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> dict[str, float]:
    """How often all answers [K] are right, of all utterances, and as a mean over the classes.

    'balanced_accuracy' is the mean over the classes (the labels that occur) of the accuracy in
    each, which is what drawing utterances with the same chance for each class measures.
    """
    right = [np.array_equal(a, b) for a, b in zip(references, answers, strict=True)]
    of_class: dict[tuple, list[bool]] = {}
    for reference, one in zip(references, right, strict=True):
        of_class.setdefault(tuple(int(label) for label in reference), []).append(one)
    balanced = np.mean([np.mean(some) for some in of_class.values()])
    return {"accuracy": float(np.mean(right)), "balanced_accuracy": float(balanced)}


def classify(
    examples: Examples, *, settings: HeadSettings, balanced: bool
) -> tuple[HeadTask, Mapping[str, np.ndarray]]:
    """The task, and answers [K] as numbers; one that does not occur in the training part is -1.

    Where it is `balanced`, every class is learnt from, and chosen on, as often.
    """
    known = values(example.label for example in examples.train)
    sizes = [len(answers) for answers in known]
    number = [{answer: i for i, answer in enumerate(answers)} for answers in known]
    labels = {
        example.recording.id: np.asarray(
            [of.get(answer, -1) for of, answer in zip(number, example.label, strict=True)], np.int32
        )
        for example in examples.everyone()
    }
    task = HeadTask(
        settings.head(sum(sizes), pooled=True),
        lambda logits, batch: loss(logits, batch, sizes=sizes),
        read=lambda logits: np.asarray([logits[own].argmax() for own in _slices(sizes)]),
        measure=accuracy,
        chosen_by="balanced_accuracy" if balanced else "accuracy",
        best="most",
        sampling="balanced" if balanced else "shuffled",
    )
    return task, labels
