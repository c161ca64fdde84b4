"""Prediction of the codes, or of the targets, of the masked frames.

Shapes: B batch, T frames, D model, N codebooks, V codewords.
"""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def masked_mean(values: Array, mask: Array, *, num_masked: Array | None = None) -> Array:
    """Mean of values [..., B, T] over the masked frames (mask [B, T]) of the global batch.

    With `num_masked`, the frames masked in all micro-batches together, this is the share of one of
    them: those of all add up to the mean.
    """
    num_masked = jnp.sum(mask) if num_masked is None else num_masked
    kept = jnp.sum(jnp.where(jnp.broadcast_to(mask, values.shape), values, 0.0), axis=(-2, -1))
    return kept / jnp.maximum(num_masked, 1)


@jax.named_scope("prediction_loss")
def prediction_loss(
    logits: Array, codes: Array, mask: Array, *, num_masked: Array | None = None
) -> Array:
    """Cross-entropy of each codebook, averaged over the masked frames of the global batch.

    Args:
      logits: [N, B, T, V] float32, of the heads.
      codes: [N, B, T] int32.
      mask: [B, T] bool.
      num_masked: As in `masked_mean`.

    Returns:
      [N] float32; the training loss is its mean (paper equation 4).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    return masked_mean(losses, mask, num_masked=num_masked)


def regression_loss(
    predictions: Array, targets: Array, mask: Array, *, num_masked: Array | None = None
) -> Array:
    """Squared error of each frame over sqrt(D), averaged over the masked frames of the batch.

    data2vec's loss for audio: loss_beta 0, and loss_scale 1 / sqrt(D).

    Args:
      predictions: [1, B, T, D] float32.
      targets: [1, B, T, D] float32.
      mask: [B, T] bool.
      num_masked: As in `masked_mean`.

    Returns:
      [1] float32.
    """
    errors = jnp.sum(jnp.square(predictions - targets), axis=-1) * targets.shape[-1] ** -0.5
    return masked_mean(errors, mask, num_masked=num_masked)
