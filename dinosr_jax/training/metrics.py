"""Metrics of every update: how well codes are predicted, and whether they stay healthy.

Shapes: B batch, S samples, T frames, N codebooks, V codewords, P bins of frame positions, K labels
of something that codes may follow, C channels.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.data.batches.crops import SAMPLE_RATE
from dinosr_jax.objective import information
from dinosr_jax.objective.loss import regression_loss

Array = jax.Array
POSITION_BIN_FRAMES = 10
LOUDNESS_BINS = 20


def perplexity(distribution: Array) -> Array:
    """2 to the entropy in bits of distributions [..., V]; between 1 and V."""
    p = distribution
    return jnp.exp2(-jnp.sum(jnp.where(p > 0, p * jnp.log2(jnp.where(p > 0, p, 1.0)), 0.0), -1))


class PredictionSums(NamedTuple):
    """Sums over masked frames; those of several batches add up."""

    frames: Array  # [] masked frames
    loss: Array  # [N] sum of the cross-entropy
    correct: Array  # [N] correctly predicted frames
    probabilities: Array  # [N, V] sum of the softmax
    codes: Array  # [N, P, V] how often a code fell into a bin of 10 frame positions


@jax.named_scope("metrics")
def prediction_statistics(logits: Array, codes: Array, mask: Array, *, bins: int) -> PredictionSums:
    """Sums the predictions of the masked frames of the global batch; without gradient.

    Logits are [N, B, T, V] float32, codes [N, B, T] int32, the mask [B, T] bool; `bins` is P, at
    least T / 10.
    """
    logits = jax.lax.stop_gradient(logits)
    n, _, frames, size = logits.shape
    masked = jnp.broadcast_to(mask, codes.shape)
    total = lambda x: jnp.sum(jnp.where(masked, x, 0.0), axis=(1, 2))
    weights = jnp.broadcast_to(mask[None, :, :, None], logits.shape)
    chosen = jnp.where(weights, jax.nn.one_hot(codes, size, dtype=jnp.float32), 0.0)
    per_frame = jnp.pad(
        jnp.sum(chosen, axis=1), ((0, 0), (0, bins * POSITION_BIN_FRAMES - frames), (0, 0))
    )
    return PredictionSums(
        frames=jnp.sum(mask, dtype=jnp.float32),
        loss=total(optax.softmax_cross_entropy_with_integer_labels(logits, codes)),
        correct=total((jnp.argmax(logits, axis=-1) == codes).astype(jnp.float32)),
        probabilities=jnp.sum(jnp.where(weights, jax.nn.softmax(logits), 0.0), axis=(1, 2)),
        codes=jnp.sum(per_frame.reshape(n, bins, POSITION_BIN_FRAMES, size), axis=2),
    )


def position_bins(max_seconds: float, *, hop: int) -> int:
    """Bins of 10 frames that the longest crop needs, where a frame begins every `hop` samples."""
    return math.ceil(max_seconds * SAMPLE_RATE / hop / POSITION_BIN_FRAMES) + 1


@jax.named_scope("metrics")
def prediction_metrics(statistics: Any) -> dict[str, Array]:
    """Health of predictions, and of codes.

    Args:
      statistics: Of one batch, or the sum of several.

    Returns:
      Of `RegressionStatistics`, scalars: loss; target_std and prediction_std (mean over the
      channels of the standard deviation over the masked frames, as fairseq's target_var and
      pred_var); explained_variance (1 - squared error / variance of the targets).
      Of `PredictionSums`, each [N]: loss (cross-entropy in nats); accuracy; top_code_share (of the
      most frequent code); target_perplexity and prediction_perplexity (2^H of the mean one-hot
      code, and of the mean softmax); codeword_use (share of the codewords that occur);
      position_information (I(code; position) / H(position), in bins of 10 frames; few frames make
      it too high).
    """
    if isinstance(statistics, RegressionStatistics):
        return _regression_metrics(statistics)
    frames = jnp.maximum(statistics.frames, 1)
    target = jnp.sum(statistics.codes, axis=1) / frames  # [N, V]
    joint = statistics.codes / frames  # [N, P, V]
    entropy = lambda p: jnp.log2(perplexity(p))
    position = entropy(jnp.sum(joint, axis=2))  # [N]
    shared = position + entropy(target) - entropy(joint.reshape(joint.shape[0], -1))
    return {
        "loss": statistics.loss / frames,
        "accuracy": statistics.correct / frames,
        "top_code_share": jnp.max(target, axis=-1),
        "target_perplexity": perplexity(target),
        "prediction_perplexity": perplexity(statistics.probabilities / frames),
        "codeword_use": jnp.mean(target > 0, axis=-1),
        "position_information": shared / jnp.maximum(position, 1e-6),
    }


class FrameSums(NamedTuple):
    """Sums over frames; those of several batches add up."""

    frames: Array  # []
    sums: Array  # [C]
    squares: Array  # [C]


@jax.named_scope("metrics")
def moments(features: Mapping[str, Array], padding_mask: Array | None) -> dict[str, FrameSums]:
    """Sums of features [B, T, C], by name, over the frames without padding, without gradient.

    `padding_mask` [B, T] is True on padding; None where nothing is padded.
    """

    def of(x: Array) -> FrameSums:
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        real = jnp.ones(x.shape[:2], bool) if padding_mask is None else ~padding_mask
        x = jnp.where(real[..., None], x, 0.0)
        total = lambda y: jnp.sum(y, axis=(0, 1))
        return FrameSums(total(real.astype(jnp.float32)), total(x), total(jnp.square(x)))

    return {name: of(x) for name, x in features.items()}


@jax.named_scope("metrics")
def standard_deviations(sums: Mapping[str, FrameSums]) -> dict[str, Array]:
    """Mean over channels of the standard deviation over batch and time (fairseq: compute_var)."""

    def of(sums: FrameSums) -> Array:
        frames = jnp.maximum(sums.frames, 1)
        variance = sums.squares / frames - jnp.square(sums.sums / frames)
        return jnp.mean(jnp.sqrt(jnp.maximum(variance, 0.0)))

    return {name: of(each) for name, each in sums.items()}


class RegressionStatistics(NamedTuple):
    """Sums over masked frames, where targets are regressed; those of several batches add up."""

    loss: Array  # []
    target: FrameSums
    prediction: FrameSums


def regression_statistics(predictions: Array, targets: Array, mask: Array) -> RegressionStatistics:
    """Sums a regression, without gradient: predictions and targets [1, B, T, D], mask [B, T]."""
    predictions = jax.lax.stop_gradient(predictions)
    loss = jnp.sum(regression_loss(predictions, targets, mask, num_masked=jnp.ones(())))
    return RegressionStatistics(
        loss, **moments({"target": targets[0], "prediction": predictions[0]}, ~mask)
    )


def _regression_metrics(statistics: RegressionStatistics) -> dict[str, Array]:
    loss, target = statistics.loss, statistics.target
    frames, width = jnp.maximum(target.frames, 1), target.sums.shape[-1]
    variance = jnp.sum(target.squares / frames - jnp.square(target.sums / frames))
    spread = {"target_std": target, "prediction_std": statistics.prediction}
    metrics = {"loss": loss / frames} | standard_deviations(spread)
    explained = 1 - metrics["loss"] * width**0.5 / jnp.maximum(variance, 1e-6)
    return metrics | {"explained_variance": explained}


class HeldOut(NamedTuple):
    """Sums over held-out batches; those of several batches add up."""

    prediction: PredictionSums | RegressionStatistics
    tables: dict[str, Array]  # what codes may follow -> `count_table` of all frames


def count_table(labels: Array, codes: Array, *, num_labels: int, codebook_size: int) -> Array:
    """How often labels [B, T] and codes [N, B, T] meet, [N, K, V] float32, exact up to 2^24 frames.

    Labels are 0 to K - 1; frames of any other number do not count.
    """
    counted = ((labels >= 0) & (labels < num_labels)).astype(jnp.float32).ravel()
    rows = jnp.broadcast_to(jnp.clip(labels, 0, num_labels - 1), codes.shape)
    pairs = rows * codebook_size + codes  # [N, B, T]
    count = lambda pair: jax.ops.segment_sum(counted, pair.ravel(), num_labels * codebook_size)
    return jax.vmap(count)(pairs).reshape(len(codes), num_labels, codebook_size)


def loudness_bins(waveforms: Array, *, field: int, hop: int) -> Array:
    """[B, T] int32: loudness of a frame in its crop [S], 0 (quietest) to 19, equally many each."""
    energy = jax.lax.reduce_window(
        jnp.square(waveforms), 0.0, jax.lax.add, (1, field), (1, hop), "valid"
    )
    rank = jnp.argsort(jnp.argsort(energy, axis=-1), axis=-1)
    return rank * LOUDNESS_BINS // energy.shape[-1]


def table_metrics(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Information of codes on phones, and on what they should not follow.

    Args:
      tables: Name -> [N, K, V] counts; 'phone' is that of the phones.

    Returns:
      Each [N]: pnmi and phone_purity (`objective.information`) of the phones; NAME_information of
      every other table with two labels at least, I(code; NAME) / H(NAME). Few frames make all of
      them too high.
    """
    of_codebooks = lambda measure, table: np.array([measure(counts) for counts in table])
    metrics = {}
    for name, table in tables.items():
        if name == "phone":
            metrics["pnmi"] = of_codebooks(information.pnmi, table)
            metrics["phone_purity"] = of_codebooks(information.phone_purity, table)
        elif np.count_nonzero(np.sum(table, axis=(0, 2))) > 1:
            metrics[f"{name}_information"] = of_codebooks(information.pnmi, table)
    return metrics


@jax.named_scope("metrics")
def norms(*, gradients: Any, params: Any, updates: Any) -> dict[str, Array]:
    """Global L2 norms of gradients, parameters and updates; scalars."""
    return {
        "gradient_norm": optax.tree.norm(gradients),
        "parameter_norm": optax.tree.norm(params),
        "update_norm": optax.tree.norm(updates),
    }


def to_record(metrics: dict[str, Any]) -> dict[str, float]:
    """Fetches metrics as numbers: 'loss' [N] gives its mean 'loss', and 'loss_0', 'loss_1', ..."""
    record: dict[str, float] = {}
    for name, value in jax.device_get(metrics).items():
        value = np.asarray(value, np.float64)
        record[name] = float(value.mean())
        if value.ndim:
            record |= {f"{name}_{k}": float(v) for k, v in enumerate(value)}
    return record
