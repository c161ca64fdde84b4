"""Dropout of attention probabilities by position: every entry's fate is a function of its place.

It depends on a PRNG key, the batch row, the head and the two positions, on nothing else: a fused
kernel, its backward pass and plain XLA drop the same entries, and none of them stores which.

An entry's word is that of its query XOR that of its key, mixed; it is dropped where that, as a
signed number, is among the lowest of all. The word of a query is its position, times an odd
constant, plus a seed of the batch row and head, mixed; that of a key the same with one seed for
all. The seeds are threefry's. Mixing is a bijection of 32 bits (the constants are "lowbias32" of
C. Wellons's search for integer hashes), so that over all words exactly the share `rate` drops.

Shapes: B batch, H heads, T frames, Q queries, K keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_QUERY_STEP, _KEY_STEP = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)  # odd
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


class Seeds(NamedTuple):
    """What decides which entries are dropped."""

    rows: Array  # [B, H] uint32
    keys: Array  # [T] uint32, the words of the keys


def threshold(rate: float) -> int:
    """Of the 2^32 words, those below it drop; 0 where nothing is dropped."""
    return min(round(rate * 2**32), 2**32 - 1)


def scale(rate: float) -> float:
    """The factor of the entries that are kept."""
    return 1.0 / (1.0 - threshold(rate) / 2**32)


def draw_seeds(key: Array, *, batch: int, heads: int, frames: int) -> Seeds:
    """Seeds of every batch row and head, and words of the keys, from a PRNG key."""
    # drawn apart: devices would exchange parts of one array to cut it
    of_rows, of_keys = jax.random.split(key)
    rows = jax.random.bits(of_rows, (batch, heads), jnp.uint32)
    first = jax.random.bits(of_keys, (1,), jnp.uint32)
    return Seeds(rows, mix(jnp.arange(frames, dtype=jnp.uint32) * _KEY_STEP + first))


def query_words(seed: Array, positions: Array) -> Array:
    """Words of queries at positions (uint32); the seed is of their batch row and head."""
    return mix(positions * _QUERY_STEP + seed)


def is_kept(queries: Array, keys: Array, *, rate: float) -> Array:
    """Whether entries are kept, by the words of their queries and keys, which broadcast."""
    # the last step of `mix` is left out: it changes the lower half only
    words = jax.lax.bitcast_convert_type(_mix_upper(queries ^ keys), jnp.int32)
    return words >= np.int32(threshold(rate) - 2**31)


def mix(x: Array) -> Array:
    """A bijection of uint32 that spreads every bit over all."""
    x = _mix_upper(x)
    return x ^ (x >> 16)


def _mix_upper(x: Array) -> Array:
    """A bijection of uint32 that spreads every bit over the upper half."""
    x = (x ^ (x >> 16)) * _FIRST
    return (x ^ (x >> 15)) * _SECOND


def drop(probabilities: Array, seeds: Seeds, *, rate: float) -> Array:
    """Inverted dropout by position of probabilities [B, H, Q, K], of all queries and all keys."""
    places = jnp.arange(probabilities.shape[2], dtype=jnp.uint32)[None, None, :, None]
    queries = query_words(seeds.rows[:, :, None, None], places)
    keep = is_kept(queries, seeds.keys[None, None, None, :], rate=rate)
    scaled = probabilities * np.asarray(scale(rate), probabilities.dtype)
    return jnp.where(keep, scaled, jnp.zeros_like(probabilities))
