"""Attention whose probabilities never leave the chip: a Pallas kernel for TPU.

The keys of one utterance and of a few heads stay in VMEM while blocks of queries pass: a query sees
all its keys at once, so that the softmax needs no rescaling; the backward pass, one kernel for all
three gradients, recomputes it. Probabilities, their gradients and what dropout kept
(`positional_dropout`) exist for one block of queries at a time, transposed, [K, Q]: four of the
five large products then read them as they lie. Softmax and accumulators are float32, products have
operands of the type of the input. Heads stay side by side in the last axis.

Shapes: B batch, T frames, H heads, W width of a head, D = H W, P frames padded to blocks, Q queries
of a block, G heads of a block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dinosr_jax.model import positional_dropout
from dinosr_jax.model.positional_dropout import Seeds

Array = jax.Array

# Queries of a block, for utterances of up to so many frames: what VMEM holds (v4 has 16 MiB).
_BLOCKS = ((1024, 256), (1792, 128))
MOST_FRAMES = _BLOCKS[-1][0]
_LANES = 128
_LOWEST = float(np.finfo(np.float32).min)
INTERPRETED = False  # for tests: what is traced then runs on any platform, slowly


class _Shape(NamedTuple):
    """What the kernels are compiled for."""

    heads: int
    rate: float
    is_padded: bool
    interpret: bool


def attend(
    q: Array, k: Array, v: Array, lengths: Array | None, seeds: Seeds | None, *, rate: float
) -> Array:
    """Softmax attention, differentiable by q, k and v.

    Args:
      q: [B, T, H, W] queries, scaled; T is `MOST_FRAMES` at most.
      k: [B, T, H, W] keys.
      v: [B, T, H, W] values.
      lengths: [B] int32, the real frames of each utterance, to which all attend; None for all.
      seeds: Of `positional_dropout`, rows [B, H]; None drops nothing.
      rate: Share of the probabilities that are dropped.

    Returns:
      [B, T, H, W] in the type of v.
    """
    batch, frames, heads, width = q.shape
    if seeds is None or not positional_dropout.threshold(rate):
        rate = 0.0
        seeds = Seeds(jnp.zeros((batch, heads), jnp.uint32), jnp.zeros(frames, jnp.uint32))
    shape = _Shape(heads, rate, lengths is not None, INTERPRETED)
    if lengths is None:
        lengths = jnp.full((batch,), frames, jnp.int32)
    flat = (x.reshape(batch, frames, heads * width) for x in (q, k, v))
    rows = jax.lax.bitcast_convert_type(seeds.rows, jnp.int32)
    return _attention(shape, *flat, lengths, rows, seeds.keys).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    shape: _Shape, q: Array, k: Array, v: Array, lengths: Array, rows: Array, keys: Array
) -> Array:
    blocks = _Blocks(shape, q)
    return pl.pallas_call(
        functools.partial(_forward_kernel, blocks),
        out_shape=jax.ShapeDtypeStruct(q.shape, v.dtype),
        grid=blocks.grid,
        in_specs=[*blocks.given, blocks.queries, blocks.keys, blocks.keys],
        out_specs=blocks.queries,
        **blocks.how,
        name="attention_forward",
    )(lengths, rows, blocks.words(keys), q, k, v)


def _backward(shape: _Shape, saved: tuple[Array, ...], g: Array) -> tuple[Array | None, ...]:
    q, k, v, lengths, rows, keys = saved
    blocks = _Blocks(shape, q)
    sums = pltpu.VMEM((blocks.padded, blocks.lanes), jnp.float32)
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, blocks),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        grid=blocks.grid,
        in_specs=[*blocks.given, *[blocks.queries] * 2, *[blocks.keys] * 2],
        out_specs=[blocks.queries, blocks.keys, blocks.keys],
        scratch_shapes=[sums, sums],
        **blocks.how,
        name="attention_backward",
    )(lengths, rows, blocks.words(keys), q, g, k, v)
    return *gradients, None, None, None


_attention.defvjp(lambda shape, *inputs: (_attention(shape, *inputs), inputs), _backward)


class _Blocks:
    """How the arrays [B, T, D] are cut, and what a kernel computes of a block."""

    def __init__(self, shape: _Shape, q: Array):
        batch, self.frames, depth = q.shape
        self.shape, self.width = shape, depth // shape.heads
        self.heads = _heads_together(shape.heads, self.width)
        self.lanes = self.heads * self.width
        self.count = next((n for most, n in _BLOCKS if self.frames <= most), None)
        if self.count is None:
            raise ValueError(
                f"attention 'fused' over {self.frames} frames: expected {MOST_FRAMES} at most"
            )
        blocks = pl.cdiv(self.frames, self.count)
        self.padded = blocks * self.count
        self.grid = (batch, shape.heads // self.heads, blocks)
        spec = lambda rows, at: pl.BlockSpec((1, rows, self.lanes), at)
        self.queries = spec(self.count, lambda b, h, i: (b, i, h))
        self.keys = spec(self.padded, lambda b, h, i: (b, 0, h))
        # lengths, seeds and words of keys, whole; the words are brought onto the chip once
        scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
        words = (self.padded, _LANES) if shape.rate else (8, _LANES)
        self.given = [scalars, scalars, pl.BlockSpec(words, lambda b, h, i: (0, 0))]
        order = ("parallel", "parallel", "arbitrary")
        params = pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=64 * 2**20)
        self.how = {"compiler_params": params, "interpret": shape.interpret}

    def head(self, number: int) -> slice:
        """Lanes of a head of the block."""
        return slice(number * self.width, (number + 1) * self.width)

    def real_rows(self, x: Array, *, first: Array | int) -> Array:
        """The block x [rows, lanes] with zeros behind the last frame, where memory has anything."""
        if self.frames == self.padded:
            return x
        at = first + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(at < self.frames, x.astype(jnp.float32), 0.0).astype(x.dtype)

    def softmax(self, q: Array, k: Array, length: Array) -> tuple[Array, Array]:
        """Of q [Q, W] and k [P, W]: exp of the logits [P, Q], and its sums [1, Q], float32."""
        logits = _product(k, q, (1, 1))
        if self.shape.is_padded or self.frames != self.padded:
            at = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
            logits = jnp.where(at < length, logits, _LOWEST)
        powers = jnp.exp(logits - jnp.max(logits, axis=0, keepdims=True))
        sums = jnp.sum(powers, axis=0, keepdims=True)
        # an utterance without a real frame attends to all alike, those of the array alone
        return powers, jnp.where(length > 0, sums, float(self.frames))

    def words(self, keys: Array) -> Array:
        """Words of the keys [T], one a row [P, 128]; nothing much where nothing is dropped."""
        rows, lanes = self.given[2].block_shape
        return jnp.broadcast_to(jnp.resize(keys, rows)[:, None], (rows, lanes))

    def keep(self, rows_ref, words_ref, head: int) -> Array | None:
        """Which entries [P, Q] of a head of the block are kept; None for all."""
        if not self.shape.rate:
            return None
        b, h, i = (pl.program_id(axis) for axis in range(3))
        seed = jax.lax.bitcast_convert_type(rows_ref[b, h * self.heads + head], jnp.uint32)
        places = jax.lax.broadcasted_iota(jnp.uint32, (1, self.count), 1)
        places += (i * self.count).astype(jnp.uint32)
        queries = positional_dropout.query_words(seed, places)
        keys = jnp.tile(words_ref[...], (1, self.count // _LANES))
        return positional_dropout.is_kept(queries, keys, rate=self.shape.rate)


def _heads_together(heads: int, width: int) -> int:
    """The fewest heads that fill whole rows of lanes; all of them where none do."""
    fits = lambda count: heads % count == 0 and count * width % _LANES == 0
    return next(filter(fits, range(1, heads + 1)), heads)


def _product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Product of two matrices over an axis of each, float32."""
    contracted = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)


def _forward_kernel(
    blocks: _Blocks, lengths_ref, rows_ref, words_ref, q_ref, k_ref, v_ref, out_ref
):
    """Output of a block of queries."""
    length, scale = lengths_ref[pl.program_id(0)], positional_dropout.scale(blocks.shape.rate)
    k, v = (blocks.real_rows(ref[0], first=0) for ref in (k_ref, v_ref))
    for head in range(blocks.heads):
        lanes = blocks.head(head)
        powers, sums = blocks.softmax(q_ref[0, :, lanes], k[:, lanes], length)
        keep = blocks.keep(rows_ref, words_ref, head)
        kept = powers if keep is None else jnp.where(keep, powers, 0.0)
        out = _product(v[:, lanes], kept.astype(v.dtype), (0, 0))  # [W, Q]
        out_ref[0, :, lanes] = (out * (scale / sums)).T.astype(out_ref.dtype)


def _backward_kernel(
    blocks: _Blocks,
    lengths_ref,
    rows_ref,
    words_ref,
    q_ref,
    g_ref,
    k_ref,
    v_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    dk_sum,
    dv_sum,
):
    """Gradients by a block of queries, and what it adds to those by all keys and values."""
    block = pl.program_id(2)
    length, scale = lengths_ref[pl.program_id(0)], positional_dropout.scale(blocks.shape.rate)
    q, g = (blocks.real_rows(ref[0], first=block * blocks.count) for ref in (q_ref, g_ref))
    k, v = (blocks.real_rows(ref[0], first=0) for ref in (k_ref, v_ref))

    @pl.when(block == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    # without a real frame, logits were not read; whatever is dropped has no gradient
    has_frames = length > 0 if blocks.shape.is_padded else True
    scaled = (g.astype(jnp.float32) * scale).astype(g.dtype)
    for head in range(blocks.heads):
        lanes = blocks.head(head)
        powers, sums = blocks.softmax(q[:, lanes], k[:, lanes], length)
        keep = blocks.keep(rows_ref, words_ref, head)
        drop = lambda x, keep=keep: x if keep is None else jnp.where(keep, x, 0.0)
        probabilities = powers * (1.0 / sums)
        dv_sum[:, lanes] += _product(drop(probabilities).astype(g.dtype), scaled[:, lanes], (1, 0))
        by_probability = drop(_product(v[:, lanes], scaled[:, lanes], (1, 1)))  # [P, Q]
        mean = jnp.sum(probabilities * by_probability, axis=0, keepdims=True)
        by_logits = (probabilities * (by_probability - mean)).astype(q.dtype)
        dk_sum[:, lanes] += jnp.where(has_frames, _product(by_logits, q[:, lanes], (1, 0)), 0.0)
        dq = jnp.where(has_frames, _product(k[:, lanes], by_logits, (0, 0)), 0.0)  # [W, Q]
        dq_ref[0, :, lanes] = dq.T.astype(dq_ref.dtype)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)
