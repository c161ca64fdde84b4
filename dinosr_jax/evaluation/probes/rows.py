"""Probes on features in memory: rows of results of frame classifiers and of phone recognition."""

from collections.abc import Callable, Sequence
from typing import Any

from dinosr_jax.data.phones.phones import SILENCE
from dinosr_jax.evaluation import result_files
from dinosr_jax.evaluation.features.in_memory import Features
from dinosr_jax.evaluation.features.sources import Held
from dinosr_jax.evaluation.probes import frame_classifier, head_training, phone_recognition
from dinosr_jax.evaluation.utterances import Division, Labelled, phones_of_frames
from dinosr_jax.model.feature_encoder import ConvLayers


def probe_frames(
    held: Features,
    division: Division,
    *,
    conv_layers: ConvLayers,
    settings: frame_classifier.ClassifierSettings,
    progress: Callable[[float], None] = lambda steps: None,
) -> list[dict[str, Any]]:
    """Accuracy of every layer, and of their weighted sum where there are several.

    Args:
      held: Features of all utterances.
      division: To learn from and to test on.
      conv_layers: Say when a frame is.
      settings: Of the training.
      progress: Is told how many steps more are done.

    Returns:
      Rows of results, without their system.
    """
    everyone = (*division.train, *division.test)
    phones = sorted({p.label for u in everyone for p in u.phones} | {SILENCE})

    def gather(some: Sequence[Labelled]) -> frame_classifier.LabelledFrames:
        labels = {
            u.recording.id: phones_of_frames(
                u, num_frames=held.arrays[u.recording.id].shape[1], conv_layers=conv_layers
            )
            for u in some
        }
        return frame_classifier.gather(held, labels, phones=phones)

    train, test = gather(division.train), gather(division.test)
    found = frame_classifier.probe(
        train, test, num_phones=len(phones), settings=settings, progress=progress
    )
    also = {"frames": len(test.phones), "most_frequent": found.most_frequent}
    rows = [
        {"layer": layer, "accuracy": float(accuracy), **also}
        for layer, accuracy in zip(held.layers, found.of_layers, strict=True)
    ]
    if len(held.layers) > 1:
        weights = [float(weight) for weight in found.weights]
        row = {"layer": result_files.WEIGHTED, "accuracy": found.weighted}
        rows.append(row | also | {"weights": weights})
    return rows


def recognise(
    held: Features,
    division: Division,
    valid: Sequence[Labelled],
    *,
    settings: head_training.HeadSettings,
    progress: Callable[[float], None] = lambda steps: None,
) -> dict[str, Any]:
    """Phone error rate of the weighted sum of the layers.

    Args:
      held: Features of all utterances.
      division: To learn from and to test on.
      valid: To choose learning rate and step on.
      settings: Of the training.
      progress: Is told how many steps more are done.

    Returns:
      A row of results, without its system.
    """
    everyone = (*division.train, *valid, *division.test)
    phones = sorted({p for u in everyone for p in phone_recognition.spoken(u.phones)})
    source = Held(held.arrays)
    parts = [
        head_training.FeaturePart(
            source,
            phone_recognition.encode(
                {u.recording.id: phone_recognition.spoken(u.phones) for u in some}, phones=phones
            ),
        )
        for some in (division.train, valid, division.test)
    ]
    task = phone_recognition.phones_task(len(phones), settings=settings)
    found = head_training.learn(task, *parts, settings=settings, progress=progress)
    return learnt_row(found, task, several=len(held.layers) > 1)


def learnt_row(
    found: head_training.Learnt, task: head_training.HeadTask, *, several: bool
) -> dict[str, Any]:
    """A row of results, without its system, of what was learnt on one layer or `several`."""
    return {
        "layer": result_files.WEIGHTED if several else None,
        **found.metrics,
        "learning_rate": found.learning_rate,
        "updates": found.step,
        "left_out": found.left_out,
        f"valid_{task.chosen_by}": {f"{rate:g}": value for rate, value in found.valid.items()},
        "weights": [float(weight) for weight in found.weights],
    }
