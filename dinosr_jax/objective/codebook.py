"""Online clustering: codebooks held as sums and counts (paper section 3.2).

Shapes: B batch, T frames, D model, N codebooks, V codewords.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Codebook(NamedTuple):
    """N codebooks of V codewords each; the codewords are sums / counts. float32 always."""

    sums: Array  # [N, V, D]
    counts: Array  # [N, V]


def init(
    key: Array, *, num_codebooks: int, codebook_size: int, width: int, scale: float = 1.0
) -> Codebook:
    """Normal noise, standardised per channel over the codewords of a codebook; counts 1.

    The variance is the biased one, with 1e-5 added, as in the official code (F.instance_norm).

    Codewords of the published scale 1 are as far from the origin as frames are, and differ in how
    far: the nearer ones get most frames, and many get none, ever. Small ones differ in direction
    alone, and frames are shared out among all.
    """
    noise = jax.random.normal(key, (num_codebooks, codebook_size, width))
    noise = noise - jnp.mean(noise, axis=1, keepdims=True)
    sums = scale * noise * jax.lax.rsqrt(jnp.var(noise, axis=1, keepdims=True) + 1e-5)
    return Codebook(sums, jnp.ones((num_codebooks, codebook_size)))


def from_frames(
    key: Array, codebook: Codebook, targets: Array, padding_mask: Array | None
) -> Codebook:
    """Codewords that are frames, drawn at random from a batch without replacement; counts 1.

    Online clustering that starts from frames is as good as k-means after few updates. From noise
    it stays behind it, since most codewords are far from all frames (docs/learning.md).

    Args:
      key: Of the draw. All codebooks take the same frames, each of its own layer.
      codebook: N codebooks; codewords beyond the number of real frames stay as they are.
      targets: [N, B, T, D] float32.
      padding_mask: [B, T] bool, True on padding, which is not drawn; None where there is none.

    Returns:
      The new codebooks.
    """
    frames = targets.reshape(targets.shape[0], -1, targets.shape[-1])
    order = jax.random.uniform(key, frames.shape[1:2])
    if padding_mask is not None:
        order = jnp.where(padding_mask.reshape(-1), -1.0, order)
    size = codebook.counts.shape[-1]
    order, drawn = jax.lax.top_k(order, min(size, order.size))
    old = codebook.sums[:, : order.size]
    sums = codebook.sums.at[:, : order.size].set(
        jnp.where((order >= 0)[:, None], frames[:, drawn], old)
    )
    return Codebook(sums, jnp.ones_like(codebook.counts))


def codewords(codebook: Codebook) -> Array:
    """The codewords [N, V, D]."""
    return codebook.sums / codebook.counts[..., None]


@jax.named_scope("codebook_distances")
def assign(codebook: Codebook, targets: Array) -> Array:
    """The nearest codeword of every frame, by squared Euclidean distance.

    Args:
      codebook: N codebooks.
      targets: [N, B, T, D] float32.

    Returns:
      Codes [N, B, T] int32.
    """
    words = codewords(codebook)
    # ||z - e||^2 without ||z||^2, which is the same for every codeword
    products = jnp.einsum("nbtd,nvd->nbtv", targets, words, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(words), axis=-1)[:, None, None, :]
    distances = jnp.broadcast_to(norms, products.shape) - 2.0 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


@jax.named_scope("codebook_statistics")
def statistics(targets: Array, codes: Array, mask: Array, *, codebook_size: int) -> Codebook:
    """Sums and counts of the masked frames of every codeword; those of several batches add up.

    Args:
      targets: [N, B, T, D] float32.
      codes: [N, B, T] int32.
      mask: [B, T] bool, the frames that count.
      codebook_size: V.

    Returns:
      Sums and counts, to move codebooks towards.
    """
    chosen = jax.nn.one_hot(codes, codebook_size, dtype=jnp.float32)  # [N, B, T, V]
    chosen = chosen * jnp.broadcast_to(mask[None, :, :, None], chosen.shape)
    precision = jax.lax.Precision.HIGHEST
    sums = jnp.einsum("nbtv,nbtd->nvd", chosen, targets, precision=precision)
    return Codebook(sums, jnp.sum(chosen, axis=(1, 2)))


@jax.named_scope("codebook_update")
def update(codebook: Codebook, found: Codebook, *, decay: Array | float) -> Codebook:
    """Moves the codebooks towards the masked frames of the global batch.

    Args:
      codebook: N codebooks.
      found: `statistics` of the whole batch, whose codes were assigned before this update.
      decay: Share that the old statistics keep, where a codeword got frames at all.

    Returns:
      The new codebooks; a codeword that got no frame stays as it is.
    """
    used = found.counts > 0
    move = lambda old, new: decay * old + (1 - decay) * new
    return Codebook(
        jnp.where(used[..., None], move(codebook.sums, found.sums), codebook.sums),
        jnp.where(used, move(codebook.counts, found.counts), codebook.counts),
    )


def decay_at(finished: Array, *, start: float, end: float, steps: int) -> Array:
    """Decay of the codebooks after `finished` updates: linear from start to end over steps."""
    share = jnp.minimum(finished / max(steps, 1), 1.0).astype(jnp.float32)
    return start + (end - start) * share if steps else jnp.full_like(share, start)
