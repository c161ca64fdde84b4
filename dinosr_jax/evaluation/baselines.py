"""Unit quality of a network's codes, beside k-means on MFCC and on the untrained network.

The baselines are given the same number of clusters, and are fitted on the same utterances. The
untrained network's units are k-means on its layers, fitted anew: a stronger baseline than its
random codebooks.

Shapes: T frames, D width, K clusters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.alignments import Alignment
from dinosr_jax.evaluation import features, unit_quality
from dinosr_jax.evaluation.labelled import Labelled, in_chance_order
from dinosr_jax.inference import kmeans, units
from dinosr_jax.inference.inputs import Recording
from dinosr_jax.inference.model import Model
from dinosr_jax.model.feature_encoder import receptive_field

Codes = Mapping[str, np.ndarray]  # id -> [T]
_MAX_BYTES = 2**30  # of the sample that the untrained network's layers are clustered on


def some_of(recordings: Sequence[Recording], *, minutes: float) -> list[Recording]:
    """Utterances of so many minutes in all, chosen by a hash of the id; or all there are."""
    kept, left = [], minutes * 60 * audio.SAMPLE_RATE
    for recording in in_chance_order(recordings, key=lambda r: r.id):
        if left <= 0:
            break
        kept.append(recording)
        left -= recording.num_samples or 0
    return kept


def codebook_codes(model: Model, recordings: Sequence[Recording], **run: Any) -> dict[int, Codes]:
    """The teacher's codes of every layer with a codebook; nothing is fitted."""
    return _codes(units.plan(model, layer="all"), recordings, run)


def network_kmeans(
    model: Model,
    train: Sequence[Recording],
    test: Sequence[Recording],
    *,
    seed: int = 0,
    **run: Any,
) -> dict[int, Codes]:
    """Codes of k-means on the `block` of each layer that has a codebook.

    Args:
      model: A network.
      train: K-means is fitted on a sample of their frames.
      test: Whose codes are found.
      seed: Of the sample and of k-means.
      **run: `on_bad` and `progress`.

    Returns:
      Codes of each layer.
    """
    config = model.config.model
    layers = list(range(config.num_layers - config.num_codebooks + 1, config.num_layers + 1))
    most = max(config.codebook_size, _MAX_BYTES // (5 * config.width * len(layers)))
    fitted = kmeans.fit(
        model,
        train,
        layer=layers,
        num_clusters=config.codebook_size,
        seed=seed,
        max_frames=min(kmeans.MAX_FRAMES, most),
        **_told(run),
    )
    return _codes(units.plan(model, layer=layers, source="kmeans", kmeans_file=fitted), test, run)


def mfcc_kmeans(
    train: features.Features, test: features.Features, *, num_clusters: int, seed: int = 0
) -> Codes:
    """Codes of k-means on MFCC.

    Args:
      train: `of_mfcc` of the utterances that k-means is fitted on.
      test: Of those whose codes are found.
      num_clusters: K.
      seed: Of k-means.

    Returns:
      Codes of each utterance.

    Raises:
      KMeansError: There are fewer frames than clusters.
    """
    frames = np.concatenate([array[0] for array in train.arrays.values()])
    if len(frames) < num_clusters:
        raise kmeans.KMeansError(
            f"{len(frames)} frames cannot make {num_clusters} clusters; give more audio"
        )
    centroids = kmeans.cluster(frames, num_clusters=num_clusters, seed=seed)
    return {id_: kmeans.nearest(centroids, array[0]) for id_, array in test.arrays.items()}


def _codes(plan: units.Plan, recordings: Sequence[Recording], run: Mapping[str, Any]) -> dict:
    found: dict[int, dict[str, np.ndarray]] = {layer: {} for layer in plan.layers}
    for utterance in units.compute(plan, recordings, **_told(run)):
        for layer, codes in zip(plan.layers, utterance.codes, strict=True):
            found[layer][utterance.recording.id] = codes
    return found


def _told(run: Mapping[str, Any]) -> dict[str, Callable]:
    """`progress` of the seconds done alone, as `batches.run` takes it."""
    if "progress" not in run:
        return dict(run)
    return dict(run) | {"progress": lambda done, _: run["progress"](done)}


def row(
    codes: Codes, alignment: Alignment, *, model: Model, system: str, layer: int | None
) -> dict[str, Any]:
    """Unit quality as a row of a file of results, and the rule and coverage that it has.

    Args:
      codes: Of utterances with phones.
      alignment: Their phones.
      model: Says how long a unit is.
      system: Of the row.
      layer: Of the row.

    Returns:
      The row.
    """
    quality = unit_quality.measure(
        codes, alignment, num_units=model.config.model.codebook_size, rule=rule(model)
    )
    return unit_quality.to_row(quality, system=system, layer=layer)


def rule(model: Model) -> unit_quality.Rule:
    """The published rule for units as long as this network's frames, which start a hop apart.

    The last frame ends within the utterance: up to a receptive field of it has no unit.
    """
    field, hop = (n / audio.SAMPLE_RATE for n in receptive_field(model.config.model.conv_layers))
    tolerance = max(2, int(field / unit_quality.STEP_SECONDS))
    return unit_quality.Rule(unit_seconds=hop, tolerance=tolerance, bad="skip")


def phones_of(utterances: Sequence[Labelled], *, path: str) -> Alignment:
    """The alignment of some utterances, under their own ids."""
    return Alignment({u.recording.id: u.phones for u in utterances}, "tsv", path)
