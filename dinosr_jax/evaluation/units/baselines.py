"""Unit quality of a network's codes, beside k-means on MFCC and on the untrained network.

The baselines are given the same number of clusters, and are fitted on the same utterances. The
untrained network's units are k-means on its layers' output, fitted anew: a stronger baseline than
its random codebooks, or k-means on the `ffn` that these cluster.

Shapes: T frames, D width, K clusters.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.phones.alignments import Alignment
from dinosr_jax.evaluation.features.compute import OPTIONS, Done
from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.units import quality as unit_quality
from dinosr_jax.evaluation.utterances import Labelled, in_chance_order
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.inference.recordings import Recording
from dinosr_jax.inference.units import kmeans, quantise
from dinosr_jax.model.feature_encoder import receptive_field

Codes = Mapping[str, np.ndarray]  # id -> [T]
_FRAMES_A_CLUSTER = 256
_MAX_BYTES = 2**30  # of the features of a network that k-means is fitted on


def some_of(recordings: Sequence[Recording], *, minutes: float) -> list[Recording]:
    """Utterances of so many minutes in all, chosen by a hash of the id; or all there are."""
    kept, left = [], minutes * 60 * audio.SAMPLE_RATE
    for recording in in_chance_order(recordings, key=lambda r: r.id):
        if left <= 0:
            break
        kept.append(recording)
        left -= recording.num_samples or 0
    return kept


def minutes_for(model: Pretrained) -> float:
    """How much speech k-means is fitted on: 256 frames a cluster, of which a GiB holds all."""
    config = model.config.model
    frames_a_minute = 60 * audio.SAMPLE_RATE / receptive_field(config.conv_layers)[1]
    most = _MAX_BYTES / (4 * config.width * config.num_codebooks)
    return min(_FRAMES_A_CLUSTER * config.codebook_size, most) / frames_a_minute


def codebook_codes(
    model: Pretrained, recordings: Sequence[Recording], *, progress: Done = lambda seconds: None
) -> dict[int, Codes]:
    """The teacher's codes of every layer with a codebook; nothing is fitted."""
    plan = quantise.plan(model, layer="all")
    codes_of: dict[int, dict[str, np.ndarray]] = {layer: {} for layer in plan.layers}
    how = {"options": OPTIONS, "progress": lambda done, _: progress(done)}
    for utterance in quantise.compute(plan, recordings, lengths="fitted", **how):
        for layer, codes in zip(plan.layers, utterance.codes, strict=True):
            codes_of[layer][utterance.recording.id] = codes
    return codes_of


def kmeans_codes(
    train: Features, test: Features, *, num_clusters: int, seed: int = 0
) -> dict[int | None, Codes]:
    """Codes of k-means, fitted on each layer anew, of each layer and utterance of `test`.

    Raises KMeansError where `train` has fewer frames than clusters.
    """
    from threadpoolctl import threadpool_limits

    frames = sum(array.shape[1] for array in train.arrays.values())
    if frames < num_clusters:
        raise kmeans.KMeansError(
            f"{frames} frames cannot make {num_clusters} clusters; give more audio"
        )

    def fit(i: int) -> Codes:
        rows = np.concatenate([array[i] for array in train.arrays.values()])
        centroids = kmeans.cluster(rows, num_clusters=num_clusters, seed=seed)
        return {id_: kmeans.nearest(centroids, array[i]) for id_, array in test.arrays.items()}

    # a thread a layer: scikit-learn's own spend most of their time waiting for each other
    with threadpool_limits(1), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = pool.map(fit, range(len(train.layers)))
        return dict(zip(train.layers, codes, strict=True))


def row(
    codes: Codes, alignment: Alignment, *, model: Pretrained, system: str, layer: int | None
) -> dict[str, Any]:
    """Unit quality of utterances with phones, as a row of a file of results."""
    quality = unit_quality.measure(
        codes, alignment, num_units=model.config.model.codebook_size, rule=rule(model)
    )
    return unit_quality.to_row(quality, system=system, layer=layer)


def rule(model: Pretrained) -> unit_quality.Rule:
    """The published rule for units as long as this network's frames, which start a hop apart.

    The last frame ends within the utterance: up to a receptive field of it has no unit. Raises
    RuleError where frames of the network and of the phones, every 10 ms, do not fit.
    """
    layers = model.config.model.conv_layers
    field, hop = (n / audio.SAMPLE_RATE for n in receptive_field(layers))
    if receptive_field(layers)[1] % (audio.SAMPLE_RATE * unit_quality.STEP_SECONDS):
        raise unit_quality.RuleError(
            f"model.conv_layers: found {tuple(layers)}, a frame every {1000 * hop:g} ms; units are "
            "laid beside phones every 10 ms, so expected a multiple of that; --task=frames and "
            "recognition take any"
        )
    tolerance = max(2, int(field / unit_quality.STEP_SECONDS))
    return unit_quality.Rule(unit_seconds=hop, tolerance=tolerance, bad="skip")


def phones_of(utterances: Sequence[Labelled], *, like: Alignment) -> Alignment:
    """The alignment of some utterances, under their own ids; its labels are all of `like`'s."""
    phones = {utterance.recording.id: utterance.phones for utterance in utterances}
    chosen = dataclasses.replace(like, utterances=phones)
    chosen.__dict__["labels"] = like.labels  # of the whole: rows of counts are the same everywhere
    return chosen
