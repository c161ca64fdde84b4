"""Probes on features: rows of results of frame classifiers and of phone recognition."""

from collections.abc import Sequence
from typing import Any

from dinosr_jax.data.phones.phones import SILENCE
from dinosr_jax.evaluation import result_files
from dinosr_jax.evaluation.features.compute import Done
from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.probes import frame_classifier, head_training, phone_recognition
from dinosr_jax.evaluation.probes.examples import Examples
from dinosr_jax.evaluation.utterances import Division, Labelled, phones_of_frames
from dinosr_jax.model.feature_encoder import ConvLayers


def probe_frames(
    features: Features,
    division: Division,
    *,
    conv_layers: ConvLayers,
    settings: frame_classifier.ClassifierSettings,
    progress: Done = lambda steps: None,
) -> list[dict[str, Any]]:
    """Accuracy of every layer, and of their weighted sum where there are several.

    `conv_layers` say when a frame is. Returns rows of results, without their system.
    """
    everyone = (*division.train, *division.test)
    phones = sorted({p.label for u in everyone for p in u.phones} | {SILENCE})

    def gather(some: Sequence[Labelled]) -> frame_classifier.LabelledFrames:
        labels = {
            u.recording.id: phones_of_frames(
                u, num_frames=features.lengths[u.recording.id], conv_layers=conv_layers
            )
            for u in some
        }
        return frame_classifier.gather(features, labels, phones=phones)

    train, test = gather(division.train), gather(division.test)
    result = frame_classifier.probe(
        train, test, num_phones=len(phones), settings=settings, progress=progress
    )
    also = {"frames": len(test.phones), "most_frequent": result.most_frequent}
    rows = [
        {"layer": layer, "accuracy": float(accuracy), **also}
        for layer, accuracy in zip(features.layers, result.of_layers, strict=True)
    ]
    if len(features.layers) > 1:
        weights = [float(weight) for weight in result.weights]
        row = {"layer": result_files.WEIGHTED, "accuracy": result.weighted}
        rows.append(row | also | {"weights": weights})
    return rows


def recognise(
    features: Features,
    examples: Examples,
    *,
    settings: head_training.HeadSettings,
    progress: Done = lambda steps: None,
) -> dict[str, Any]:
    """Phone error rate of the weighted sum of the layers: a row of results, without its system."""
    task, labels = phone_recognition.recognise(examples, settings=settings)
    parts = head_training.feature_parts(features, examples, labels)
    learnt = head_training.learn(task, *parts, settings=settings, progress=progress)
    return learnt_row(learnt, task, several=len(features.layers) > 1)


def learnt_row(
    learnt: head_training.Learnt, task: head_training.HeadTask, *, several: bool
) -> dict[str, Any]:
    """A row of results, without its system, of what was learnt on one layer or `several`."""
    return {
        "layer": result_files.WEIGHTED if several else None,
        **learnt.metrics,
        "learning_rate": learnt.learning_rate,
        "updates": learnt.step,
        "left_out": learnt.left_out,
        f"valid_{task.chosen_by}": {f"{rate:g}": value for rate, value in learnt.valid.items()},
        "weights": [float(weight) for weight in learnt.weights],
    }
