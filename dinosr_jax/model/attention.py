"""Multi-head self-attention, and which implementation computes it on which device.

Shapes: B batch, T frames, D model, H heads, W = D / H width of a head, Q queries of a block.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinosr_jax.errors import UserError
from dinosr_jax.model import fused_attention, layers, positional_dropout
from dinosr_jax.model.positional_dropout import Seeds

Array = jax.Array
Attention = Literal["auto", "xla", "fused", "cudnn"]
Implementation = Literal["xla", "fused", "cudnn"]

# What the fused kernel gives; the backward pass of a layer does not compute it again.
FUSED_OUTPUT = "fused_attention"

# Without dropout, attention over more frames than _LONG is computed by XLA for _QUERY_BLOCK queries
# at a time: memory grows with the length of a recording, not with its square.
_LONG, _QUERY_BLOCK = 4096, 512

_HEADS_OF_FUSED = (32, 64, 128)  # widths of heads that fill rows of lanes
_HEADS_OF_CUDNN = tuple(range(8, 129, 8))
_OLDEST_GPU = (8, 0)  # compute capability


def implementation(
    attention: Attention,
    *,
    platform: str,
    head_width: int,
    frames: int,
    dtype: jnp.dtype,
    capability: str | None = None,
) -> Implementation:
    """The implementation of `model.attention` on a device, of heads of a width over so many frames.

    'auto' is 'fused' on TPU where the kernel takes the heads and the frames, and 'xla' elsewhere.
    The `capability` is CUDA's of a GPU, such as '8.0', if known.

    Raises:
      UserError: The device cannot run it.
    """
    if attention == "xla":
        return "xla"
    if attention == "cudnn":
        problem = _problem_of_cudnn(platform, head_width, dtype, capability)
    else:
        problem = _problem_of_fused(platform, head_width, frames)
    if problem and attention == "auto":
        return "xla"
    if problem:
        raise UserError(
            f"config.model.attention: found {attention!r}, which {problem}; choose 'xla', or "
            "'auto' for what this device runs best"
        )
    return "fused" if attention == "auto" else attention


def _problem_of_fused(platform: str, head_width: int, frames: int) -> str:
    """Why the kernel cannot run; '' if it can. Interpreted, it runs anywhere, for heads of any."""
    most = fused_attention.MOST_FRAMES
    if frames > most:
        return f"takes {most} frames at most, not {frames} (data.max_seconds)"
    if fused_attention.INTERPRETED:
        return ""
    if platform != "tpu":
        return f"needs a TPU, not a {platform.upper()}"
    return _problem_of_heads(head_width, _HEADS_OF_FUSED, "32, 64 or 128")


def _problem_of_cudnn(
    platform: str, head_width: int, dtype: jnp.dtype, capability: str | None
) -> str:
    """Why cuDNN cannot run; '' if it can."""
    if platform != "gpu":
        return f"needs an NVIDIA GPU, not a {platform.upper()}"
    if dtype != jnp.bfloat16:
        return f"needs compute_dtype 'bfloat16', not {jnp.dtype(dtype).name!r}"
    if capability and tuple(map(int, capability.split("."))) < _OLDEST_GPU:
        oldest = ".".join(map(str, _OLDEST_GPU))
        return f"needs a GPU of compute capability {oldest} or later, not {capability}"
    return _problem_of_heads(head_width, _HEADS_OF_CUDNN, "a multiple of 8 up to 128")


def _problem_of_heads(head_width: int, taken: tuple[int, ...], expected: str) -> str:
    if head_width in taken:
        return ""
    return f"takes heads of a width of {expected}, not {head_width} (model.width / model.num_heads)"


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases on q, k, v and output; softmax in float32.

    Probabilities are dropped by position, the same entries whoever computes. cuDNN cannot do that:
    where probabilities are dropped, XLA computes in its place.
    """

    num_heads: int
    dropout: float
    attention: Attention = "xla"

    @nn.compact
    def __call__(self, x: Array, padding_mask: Array | None, *, key: Array | None) -> Array:
        """Maps x [B, T, D] to [B, T, D]; `key` switches dropout of the probabilities on."""
        batch, frames, depth = x.shape
        width = depth // self.num_heads

        def heads(name: str) -> Array:
            y = layers.Linear(depth, name=name)(x)
            y = y.reshape(batch, frames, self.num_heads, width)
            return layers.place(y, "batch", None, "heads")

        q, k, v = heads("query"), heads("key"), heads("value")  # [B, T, H, W]
        seeds = None
        if key is not None and positional_dropout.threshold(self.dropout):
            sizes = {"batch": batch, "heads": self.num_heads, "frames": frames}
            seeds = positional_dropout.draw_seeds(key, **sizes)
        y = self.attend(q, k, v, padding_mask, seeds)
        return layers.place(layers.Linear(depth, name="output")(y.reshape(x.shape)), "batch")

    def attend(
        self, q: Array, k: Array, v: Array, padding_mask: Array | None, seeds: Seeds | None
    ) -> Array:
        """Attention of queries, keys and values [B, T, H, W]; the same shape."""
        frames, width = q.shape[1], q.shape[3]
        drops = seeds is not None
        if not drops and frames > _LONG:
            return _attend_long(q, k, v, padding_mask)
        attention: Attention = self.attention
        if attention == "fused" and not drops and frames > fused_attention.MOST_FRAMES:
            attention = "xla"  # a held-out recording that is longer than any crop
        device = {"platform": layers.platform(), "dtype": q.dtype}
        chosen = implementation(attention, head_width=width, frames=frames, **device)
        if chosen == "fused":
            return _attend_fused(q, k, v, padding_mask, seeds, rate=self.dropout)
        if chosen == "cudnn" and not drops:
            return _attend_cudnn(q, k, v, padding_mask)
        return _attend(q, k, v, padding_mask, seeds, rate=self.dropout)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    padding_mask: Array | None,
    seeds: Seeds | None = None,
    *,
    rate: float = 0.0,
) -> Array:
    """Attention of queries [B, Q, H, W] to all keys, by XLA; the shape of q."""
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B, H, T, W]
    logits = layers.product("bhqd,bhkd->bhqk", q, k)  # float32
    if padding_mask is not None:
        lowest = jnp.finfo(jnp.float32).min
        logits = jnp.where(padding_mask[:, None, None, :], lowest, logits)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if seeds is not None:
        probabilities = positional_dropout.drop(probabilities, seeds, rate=rate)
        if layers.platform() == "tpu":  # libtpu 0.0.42 ends with signal 11 where a product fuses it
            probabilities = jax.lax.optimization_barrier(probabilities)
    return jnp.einsum("bhqk,bhkd->bhqd", probabilities, v).swapaxes(1, 2)


def _attend_long(q: Array, k: Array, v: Array, padding_mask: Array | None) -> Array:
    """The same, some queries at a time."""
    batch, frames, *head = q.shape
    blocks = -(-frames // _QUERY_BLOCK)
    q = jnp.pad(q, ((0, 0), (0, blocks * _QUERY_BLOCK - frames), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(batch, blocks, _QUERY_BLOCK, *head), 1, 0)
    y = jax.lax.map(lambda block: _attend(block, k, v, padding_mask), q)
    return jnp.moveaxis(y, 0, 1).reshape(batch, -1, *head)[:, :frames]


def _attend_fused(
    q: Array, k: Array, v: Array, padding_mask: Array | None, seeds: Seeds | None, *, rate: float
) -> Array:
    """The same by the fused kernel, every device its own rows and heads."""
    sequence = ("batch", None, "heads")
    axes = (sequence, sequence, sequence, ("batch",), ("batch", "heads"), ())

    def attend(q, k, v, lengths, *words):
        own = None if seeds is None else Seeds(*words)
        return fused_attention.attend(q, k, v, lengths, own, rate=rate)

    words = (None, None) if seeds is None else seeds
    scaled = q * q.shape[-1] ** -0.5
    y = layers.spread(attend, axes, sequence)(scaled, k, v, _lengths(padding_mask), *words)
    return checkpoint_name(y, FUSED_OUTPUT)


def _attend_cudnn(q: Array, k: Array, v: Array, padding_mask: Array | None) -> Array:
    """The same by cuDNN."""
    lengths = _lengths(padding_mask)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _lengths(padding_mask: Array | None) -> Array | None:
    """Real frames [B] int32 of each utterance; padding [B, T] follows them."""
    return None if padding_mask is None else jnp.sum(~padding_mask, axis=1, dtype=jnp.int32)
