"""Connectionist temporal classification: the loss of a transcript, and the best path.

Shapes: B batch, T frames, U labels, V symbols; number 0 is the blank.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array
BLANK = 0


@jax.named_scope("ctc_loss")
def ctc_loss(logits: Array, padding_mask: Array | None, labels: Array, num_labels: Array) -> Array:
    """Negative log-probability of each transcript, in nats (Graves et al. 2006).

    Args:
      logits: [B, T, V] float32.
      padding_mask: [B, T] bool, True on padding; None where nothing is padded.
      labels: [B, U] int32, anything after the end.
      num_labels: [B] int32.

    Returns:
      [B] float32; 0, and no gradient, where there are more labels than frames can say, as with
      fairseq's zero_infinity.
    """
    shape, positions = logits.shape[:2], jnp.arange(labels.shape[1])[None]
    padded = jnp.zeros(shape, bool) if padding_mask is None else padding_mask
    after = positions >= num_labels[:, None]
    repeated = (labels[:, 1:] == labels[:, :-1]) & ~after[:, 1:]
    needed = num_labels + jnp.sum(repeated, axis=1)
    fits = needed <= jnp.sum(~padded, axis=1)
    after, padded = after.astype(jnp.float32), padded.astype(jnp.float32)
    loss = optax.ctc_loss(logits, padded, labels, after, blank_id=BLANK)
    return jnp.where(fits, loss, 0.0)


def best_path(codes: np.ndarray) -> np.ndarray:
    """The most probable symbols [T] of the frames as labels: repetitions are one, blanks go."""
    codes = np.asarray(codes)
    changed = np.concatenate([[True], codes[1:] != codes[:-1]])[: len(codes)]
    kept = codes[changed]
    return kept[kept != BLANK]
