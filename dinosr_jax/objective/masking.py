"""Span masks, drawn on the device (fairseq compute_mask_indices, static spans with overlap).

Shapes: B batch, T frames.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.named_scope("masks")
def span_mask(
    key: Array,
    num_frames: Array,
    *,
    frames: int,
    prob: float,
    length: int,
    min_spans: int,
    group_size: int | None,
) -> Array:
    """Draws the frames to mask (METHOD: fairseq data_utils.compute_mask_indices).

    Every utterance gets floor(prob * num_frames / length + u) spans, u uniform in [0, 1) and at
    least `min_spans`, whose starts are drawn without replacement from [0, num_frames - length).
    Then every utterance keeps as many masked frames as the one of its group with the fewest, the
    surplus being dropped at random (require_same_masks, where a group is the batch of one GPU).

    Args:
      key: PRNG key.
      num_frames: [B] int, real frames of each utterance; the others are never masked. Rows of 0
        frames, which only fill the batch, do not count in their group.
      frames: T, the length of the batch.
      prob: Share of the frames that spans would mask if they did not overlap.
      length: Frames in a span.
      min_spans: Least number of spans an utterance.
      group_size: Utterances of a group: the first ones of the batch, the next, and so on; the last
        group has what is left. None keeps the surplus.

    Returns:
      [B, T] bool, True where the frame is masked.
    """
    count_key, start_key, surplus_key = jax.random.split(key, 3)
    real = num_frames.astype(jnp.int32)[:, None]  # [B, 1]
    u = jax.random.uniform(count_key, real.shape)
    spans = jnp.floor(prob * real / length + u).astype(jnp.int32)
    spans = jnp.maximum(spans, min_spans)
    starts = jnp.where(real - length <= spans, spans + 1, real - length)  # candidates: [0, starts)
    position = jnp.arange(frames)[None, :]
    is_start = _choose(start_key, position < starts, count=spans)
    begun = jnp.cumsum(is_start, axis=1)
    ended = jnp.pad(begun, ((0, 0), (length, 0)))[:, :frames]
    mask = (begun > ended) & (position < real)
    if group_size is not None:
        counts = jnp.where(real[:, 0] > 0, jnp.sum(mask, axis=1), frames)
        groups = jnp.arange(len(counts)) // group_size
        fewest = jax.ops.segment_min(counts, groups, num_segments=-(-len(counts) // group_size))
        mask = _choose(surplus_key, mask, count=fewest[groups][:, None])
    return mask


def _choose(key: Array, candidates: Array, *, count: Array) -> Array:
    """Chooses `count` [B, 1] of the True entries of each row [B, T]."""
    score = jnp.where(candidates, jax.random.uniform(key, candidates.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(score, axis=1), axis=1)
    return candidates & (rank < count)
