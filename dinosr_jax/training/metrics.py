"""What is logged of every update: how well codes are predicted, and whether they stay healthy.

Shapes: B batch, T frames, N codebooks, V codewords.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.objective.loss import masked_mean

Array = jax.Array
POSITION_BIN_FRAMES = 10


def perplexity(distribution: Array) -> Array:
    """2 to the entropy in bits of distributions [..., V]; between 1 and V."""
    p = distribution
    return jnp.exp2(-jnp.sum(jnp.where(p > 0, p * jnp.log2(jnp.where(p > 0, p, 1.0)), 0.0), -1))


def prediction_metrics(logits: Array, codes: Array, mask: Array) -> dict[str, Array]:
    """Health of codes and predictions, over the masked frames of the global batch.

    Args:
      logits: [N, B, T, V] float32.
      codes: [N, B, T] int32.
      mask: [B, T] bool.

    Returns:
      Each [N], one number a codebook: target_perplexity and prediction_perplexity (2^H of the mean
      one-hot code, and of the mean softmax); codeword_use (share of the codewords that occur);
      accuracy; top_code_share (what always guessing the most frequent code would reach);
      position_information (I(code; position) / H(position), position in bins of 10 frames: codes
      that follow the position in the crop are not phones).
    """
    size = logits.shape[-1]
    chosen = jax.nn.one_hot(codes, size, dtype=jnp.float32)  # [N, B, T, V]
    chosen = chosen * jnp.broadcast_to(mask[None, :, :, None], chosen.shape)
    per_frame = jnp.sum(chosen, axis=1)  # [N, T, V] how often a code falls on a position
    target = jnp.sum(per_frame, axis=1) / jnp.maximum(jnp.sum(mask), 1)  # [N, V]
    probabilities = jnp.moveaxis(jax.nn.softmax(logits, axis=-1), -1, 1)  # [N, V, B, T]
    return {
        "target_perplexity": perplexity(target),
        "prediction_perplexity": perplexity(masked_mean(probabilities, mask)),
        "codeword_use": jnp.mean(target > 0, axis=-1),
        "accuracy": masked_mean((jnp.argmax(logits, axis=-1) == codes).astype(jnp.float32), mask),
        "top_code_share": jnp.max(target, axis=-1),
        "position_information": position_information(per_frame),
    }


def position_information(counts: Array) -> Array:
    """I(code; position) / H(position) of counts [N, T, V] of codes at frame positions.

    Positions are taken in bins of 10 frames. Returns [N], between 0 and 1.
    """
    n, frames, size = counts.shape
    bins = -(-frames // POSITION_BIN_FRAMES)
    padding = bins * POSITION_BIN_FRAMES - frames
    counts = jnp.pad(counts, ((0, 0), (0, padding), (0, 0)))
    joint = jnp.sum(counts.reshape(n, bins, POSITION_BIN_FRAMES, size), axis=2)
    joint = joint / jnp.maximum(jnp.sum(joint, axis=(1, 2), keepdims=True), 1)  # [N, P, V]
    entropy = lambda p: jnp.log2(perplexity(p))
    position = entropy(jnp.sum(joint, axis=2))
    information = position + entropy(jnp.sum(joint, axis=1)) - entropy(joint.reshape(n, -1))
    return jnp.where(position > 0, information / jnp.where(position > 0, position, 1.0), 0.0)


def norms(*, gradients: Any, params: Any, updates: Any) -> dict[str, Array]:
    """Global L2 norms of gradients, parameters and updates; scalars."""
    return {
        "gradient_norm": optax.tree.norm(gradients),
        "parameter_norm": optax.tree.norm(params),
        "update_norm": optax.tree.norm(updates),
    }


def to_record(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics on the device to plain numbers: [N] becomes its mean and one field a codebook.

    'loss' of shape [N] gives 'loss' (the mean) and 'loss_0', 'loss_1', ... Fetches from the device.
    """
    record: dict[str, float] = {}
    for name, value in jax.device_get(metrics).items():
        value = np.asarray(value, np.float64)
        record[name] = float(value.mean())
        if value.ndim:
            record |= {f"{name}_{k}": float(v) for k, v in enumerate(value)}
    return record
