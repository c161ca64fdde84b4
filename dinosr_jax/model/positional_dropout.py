"""Dropout of attention probabilities by position: every entry's fate is a function of its place.

Whether the probability of a query and a key is dropped depends on the seeds of its batch row and
head and on the two positions, on nothing else: a fused kernel, its backward pass and plain XLA drop
the same entries, and none of them stores which.

Generator: a word of the query, XOR a word of the key, mixed once more. Each word is its position,
times an odd constant, plus a seed of the batch row and head (threefry), mixed. `mix` is a bijection
of 32 bits in which each bit of the input flips each bit of the output with probability 0.5 to
0.2 % at most, on average ("lowbias32" of C. Wellons's search for integer hashes). So the rate of
each pair of seeds is exact, and what is drawn for two entries differs as two words of threefry
would, as far as the tests see: rows, columns, heads and batch rows are pairwise independent.
An entry costs 11 integer operations (XOR, 8 of `mix`, a comparison, a selection); threefry, 100.

Shapes: B batch, H heads, Q queries, K keys.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_QUERY_STEP, _KEY_STEP = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)  # odd
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


def threshold(rate: float) -> int:
    """Of the 2^32 words, those below it drop; 0 where nothing is dropped."""
    return min(round(rate * 2**32), 2**32 - 1)


def draw_seeds(key: Array, *, batch: int, heads: int) -> Array:
    """Seeds of every batch row and head, from a PRNG key: [B, H, 2] uint32."""
    return jax.random.bits(key, (batch, heads, 2), jnp.uint32)


def query_words(seed: Array, positions: Array) -> Array:
    """Words of queries at positions (uint32); seed a scalar, or of a shape that broadcasts."""
    return mix(positions * _QUERY_STEP + seed)


def key_words(seed: Array, positions: Array) -> Array:
    """Words of keys at positions (uint32); seed a scalar, or of a shape that broadcasts."""
    return mix(positions * _KEY_STEP + seed)


def is_kept(queries: Array, keys: Array, *, rate: float) -> Array:
    """Whether entries are kept, by the words of their queries and keys, which broadcast."""
    return mix(queries ^ keys) >= np.uint32(threshold(rate))


def mix(x: Array) -> Array:
    """A bijection of uint32 that spreads every bit over all."""
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15)) * _SECOND
    return x ^ (x >> 16)


def drop(probabilities: Array, seeds: Array, *, rate: float) -> Array:
    """Inverted dropout by position.

    Args:
      probabilities: [B, H, Q, K].
      seeds: [B, H, 2] uint32 of `draw_seeds`.
      rate: Probability of a zero, to a multiple of 2^-32.

    Returns:
      `probabilities` with a share `rate` of the entries zeroed, the others divided by 1 - rate.
    """
    batch, heads, queries, keys = probabilities.shape
    places = lambda count: jnp.arange(count, dtype=jnp.uint32)[None, None]
    rows = query_words(seeds[..., :1], places(queries))[..., :, None]
    columns = key_words(seeds[..., 1:], places(keys))[..., None, :]
    keep = is_kept(rows, columns, rate=rate)
    scale = np.asarray(1.0 / (1.0 - threshold(rate) / 2**32), probabilities.dtype)
    return jnp.where(keep, probabilities * scale, jnp.zeros_like(probabilities))
