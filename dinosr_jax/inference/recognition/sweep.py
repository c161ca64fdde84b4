"""The weights of language model and word score that recognise a development set best.

The emissions are computed once; every trial decodes them with other weights. Processes share the
work: the decoder holds Python's lock.

Shapes: T frames, V symbols.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinosr_jax.data.vocabulary import Vocabulary
from dinosr_jax.errors import UserError
from dinosr_jax.inference.recognition.beam_search import BeamSearch, BeamSettings
from dinosr_jax.inference.recognition.decode_pool import spawned
from dinosr_jax.inference.recognition.decoding import Clock

LM_WEIGHTS, WORD_SCORES = (0.0, 8.0), (-5.0, 5.0)  # fairseq's bounds


class Trial(NamedTuple):
    """Weights and what they give: word and character error rate of the development set."""

    lm_weight: float
    word_score: float
    wer: float
    cer: float


class SweepTask(NamedTuple):
    """What is decoded: emissions [T, V] and references, normalised, in the same order."""

    vocabulary: Vocabulary
    clock: Clock
    settings: BeamSettings
    emissions: Sequence[np.ndarray]
    references: Sequence[str]


def draw(number: int, *, seed: int) -> list[tuple[float, float]]:
    """Weights to try, uniform in fairseq's bounds; the first are fairseq's values."""
    random = np.random.default_rng(seed)
    start, others = (BeamSettings().lm_weight, BeamSettings().word_score), number - 1
    drawn = (random.uniform(*bounds, others).round(3) for bounds in (LM_WEIGHTS, WORD_SCORES))
    return [start, *zip(*(values.tolist() for values in drawn), strict=True)]


def sweep(
    task: SweepTask,
    weights: Sequence[tuple[float, float]],
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda number: None,
) -> list[Trial]:
    """Tries pairs of lm_weight and word_score.

    `num_workers` are processes, each with the n-gram in its memory; None for one a core, 1 for none
    beside this one. `progress` gets the number of trials that more are done.

    Returns:
      The trials, the best first: least WER, then CER, then the order of `weights`.

    Raises:
      UserError: As `BeamSearch`; or there is nothing to be recognised.
      ChildProcessError: A process was killed.
    """
    if not sum(len(text.split()) for text in task.references):
        raise UserError("the references are empty: there is nothing to tune on")
    workers = min(num_workers or os.cpu_count() or 1, len(weights))
    trials: list[Trial] = []
    if workers == 1:
        decoder = BeamSearch(task.vocabulary, task.clock, task.settings)
        for pair in weights:
            trials.append(_try(decoder, task, pair))
            progress(1)
    else:
        BeamSearch(task.vocabulary, task.clock, task.settings)  # its errors come here
        with spawned(workers, _start, task) as pool:
            for trial in pool.map(_try_here, weights):
                trials.append(trial)
                progress(1)
    return sorted(trials, key=lambda trial: (trial.wer, trial.cer))


_HERE: dict[str, Any] = {}  # of a process of the pool: its decoder and the task


def _start(task: SweepTask) -> None:
    _HERE.update(decoder=BeamSearch(task.vocabulary, task.clock, task.settings), task=task)


def _try_here(weights: tuple[float, float]) -> Trial:
    return _try(_HERE["decoder"], _HERE["task"], weights)


def _try(decoder: BeamSearch, task: SweepTask, weights: tuple[float, float]) -> Trial:
    from rapidfuzz.distance import Levenshtein

    changed = decoder.with_weights(lm_weight=weights[0], word_score=weights[1])
    edits, lengths = np.zeros(2, int), np.zeros(2, int)
    for emissions, reference in zip(task.emissions, task.references, strict=True):
        text = task.vocabulary.normalise(changed(emissions).text)
        for i, (a, b) in enumerate([(reference.split(), text.split()), (reference, text)]):
            edits[i] += Levenshtein.distance(a, b)
            lengths[i] += len(a)
    return Trial(*weights, *(edits / np.maximum(lengths, 1)).tolist())


def to_dict(trials: Sequence[Trial], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON: `settings` with the best weights, as `transcribe --settings` reads them."""
    best = trials[0]
    weights = {"lm_weight": best.lm_weight, "word_score": best.word_score}
    return {
        "settings": {**settings, **weights},
        "wer": best.wer,
        "cer": best.cer,
        "trials": [trial._asdict() for trial in trials],
    }
