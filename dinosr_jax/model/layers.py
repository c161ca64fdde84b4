"""The arithmetic that every part of the network shares.

Shapes: B batch, T frames in, U frames out, C channels in, D channels out, K kernel.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def gelu(x: Array) -> Array:
    """Exact (erf) GELU; the tanh form of `jax.nn.gelu` moves the features by 1.4e-3."""
    return jax.nn.gelu(x, approximate=False)


def layer_norm(
    x: Array, *, scale: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Array:
    """Layer normalisation over the last axis, in float32.

    Args:
      x: [..., D], any float type.
      scale: [D] float32, or None for none.
      bias: [D] float32, or None for none.
      eps: Added to the variance; 1e-5 is PyTorch's (Flax's 1e-6 moves the features by 1.7e-5).

    Returns:
      [..., D] in the type of `x`.
    """
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if scale is not None:
        y = y * jnp.broadcast_to(scale, y.shape)
    if bias is not None:
        y = y + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype)


def strided_conv(x: Array, kernel: Array, *, stride: int) -> Array:
    """One-dimensional convolution without padding.

    Args:
      x: [B, T, C].
      kernel: [K, C, D], in the type of `x`.
      stride: Hop in frames.

    Returns:
      [B, U, D] with U = floor((T - K) / stride) + 1.
    """
    length = (x.shape[1] - kernel.shape[0]) // stride + 1
    taps = [
        jax.lax.slice_in_dim(x, k, k + stride * (length - 1) + 1, stride, axis=1)
        for k in range(kernel.shape[0])
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def grouped_conv(x: Array, kernel: Array, bias: Array, *, groups: int) -> Array:
    """Grouped one-dimensional convolution, stride 1, as many frames out as in.

    Zero padding of K // 2 frames on both sides; with an even K the last frame out is left away
    (fairseq's SamePad).

    Args:
      x: [B, T, C].
      kernel: [K, C / groups, D], in the type of `x`.
      bias: [D].
      groups: Divides C and D.

    Returns:
      [B, T, D].
    """
    pad = kernel.shape[0] // 2
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(pad, pad - (kernel.shape[0] % 2 == 0))],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
    return y + jnp.broadcast_to(bias, y.shape)


class LayerNorm(nn.Module):
    """`layer_norm` with learned scale and bias."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises x [..., D] over its last axis."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return layer_norm(x, scale=scale, bias=bias)


class Linear(nn.Module):
    """Affine map of the last axis; float32 parameters, computed in the type of the input."""

    features: int
    kernel_init: Any = nn.initializers.normal(0.02)
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [..., C] to [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        y = x @ kernel.astype(x.dtype)
        return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


def uniform_init(*, fan_in: int):
    """PyTorch's default of Conv1d and Linear, for kernel and bias: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Inverted dropout.

    Args:
      x: Any shape.
      rate: Probability of a zero.
      key: PRNG key, or None for the identity (evaluation).

    Returns:
      `x` with a share `rate` of its entries zeroed and the others divided by 1 - rate.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
