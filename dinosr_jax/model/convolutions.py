"""Convolutions over time, with gradients of their own on CPU.

XLA on CPU takes many times as long for the textbook gradients of some of them as for the
convolutions; on GPU and TPU, its own are used.

Shapes: B batch, T frames in, U frames out, C channels in, D channels out, K kernel, G groups.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.model import layers

Array = jax.Array
_LANES = 128  # channels of a tile of a TPU


def strided_conv(x: Array, kernel: Array, *, stride: int) -> Array:
    """One-dimensional convolution of x [B, T, C] with kernel [K, C, D], without padding.

    Returns:
      [B, U, D] with U = floor((T - K) / stride) + 1.
    """
    return (_strided if layers.platform() == "cpu" else _strided_plain)(x, kernel, stride)


def _strided_plain(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=(stride,), padding="VALID", dimension_numbers=_LAYOUT
    )


_LAYOUT = ("NWC", "WIO", "NWC")

# XLA's gradient of x convolves with zeros between the frames, on one core; a convolution for each
# phase of the stride does not, and takes half to three quarters of the time.
_strided = jax.custom_vjp(_strided_plain, nondiff_argnums=(2,))


def _strided_backward(stride, saved, g):
    x, kernel = saved
    rows = -(-kernel.shape[0] // stride)  # taps a phase, at most

    def phase(first: int) -> Array:
        """Gradient of every stride-th frame of x, from `first` on: [B, U + rows - 1, C]."""
        taps = kernel[first::stride][::-1].swapaxes(1, 2)  # [k, D, C]
        if not len(taps):
            return jnp.zeros((g.shape[0], g.shape[1] + rows - 1, x.shape[2]), g.dtype)
        padding = [(len(taps) - 1, rows - 1)]
        return jax.lax.conv_general_dilated(g, taps, (1,), padding, dimension_numbers=_LAYOUT)

    dx = jnp.stack([phase(first) for first in range(stride)], axis=2)
    dx = dx.reshape(x.shape[0], -1, x.shape[2])[:, : x.shape[1]]
    dx = jnp.pad(dx, ((0, 0), (0, x.shape[1] - dx.shape[1]), (0, 0)))  # frames that no window met
    if x.shape[2] == 1:  # the waveform: a fifth of the time
        windows = [x[:, k::stride][:, : g.shape[1], 0] for k in range(kernel.shape[0])]
        return dx, jnp.einsum("kbu,bud->kd", jnp.stack(windows), g)[:, None]
    _, by_kernel = jax.vjp(lambda kernel: _strided_plain(x, kernel, stride), kernel)
    return dx, *by_kernel(g)


_strided.defvjp(
    lambda x, kernel, stride: (_strided_plain(x, kernel, stride), (x, kernel)), _strided_backward
)


def grouped_conv(x: Array, kernel: Array, bias: Array, *, groups: int) -> Array:
    """Grouped one-dimensional convolution, stride 1, as many frames out as in (fairseq's SamePad).

    Zero padding of K // 2 frames on both sides; with an even K the last frame out is left away.

    Args:
      x: [B, T, C].
      kernel: [K, C / groups, D]; computed in the type of `x`. A float32 kernel's gradient is summed
        over the devices in float32.
      bias: [D], in the type of `x`.
      groups: Divides C and D.
    """
    own = _grouped if layers.platform() == "cpu" else _grouped_plain
    convolve = lambda x, kernel: own(x, kernel.astype(x.dtype), groups)
    if layers.platform() == "tpu":
        convolve = lambda x, kernel: _grouped_wide(x, kernel.astype(x.dtype), groups)
    # XLA would gather the batch for it: its partitioner cuts no grouped convolution
    y = layers.split(convolve)(x, kernel)
    return y + jnp.broadcast_to(bias, y.shape)


def _grouped_plain(x: Array, kernel: Array, groups: int, *, before: int | None = None) -> Array:
    """Maps x [B, T, C] to [B, T, D]; kernel [K, C / G, D]; `before`: frames padded at the start."""
    before = kernel.shape[0] // 2 if before is None else before
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(before, kernel.shape[0] - 1 - before)],
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _grouped_wide(x: Array, kernel: Array, groups: int) -> Array:
    """The same with neighbouring groups made one, whose kernel has zeros between them.

    A TPU multiplies 128 channels of a group at a time, whether they are there or not: 16 groups of
    48 cost twice as much as 8 of 96.
    """
    width, each = kernel.shape[1], kernel.shape[2] // groups
    fit = [n for n in range(1, groups + 1) if groups % n == 0 and n * width <= _LANES]
    merged = max(fit, default=1)
    row = np.arange(merged * width)[:, None] // width
    own = row == np.arange(kernel.shape[2]) // each % merged  # [C / G * merged, D]
    kernel = jnp.where(own[None], jnp.tile(kernel, (1, merged, 1)), 0)
    return _grouped_plain(x, kernel, groups // merged)


# On CPU XLA takes 20 times as long for the gradient of a grouped kernel as for the convolution; a
# product of frames and gradients a tap takes no longer than that.
_grouped = jax.custom_vjp(_grouped_plain, nondiff_argnums=(2,))


def _grouped_backward(groups, saved, g):
    x, kernel = saved
    taps, width, channels = kernel.shape  # K, C / G, D
    (batch, frames, _), before = x.shape, kernel.shape[0] // 2
    flipped = kernel[::-1].reshape(taps, width, groups, -1).transpose(0, 3, 2, 1)
    flipped = flipped.reshape(taps, channels // groups, x.shape[2])
    dx = _grouped_plain(g, flipped, groups, before=taps - 1 - before)
    padded = jnp.pad(x, ((0, 0), (before, taps - 1 - before), (0, 0)))
    padded = padded.reshape(batch, -1, groups, width).transpose(
        2, 0, 1, 3
    )  # [G, B, T + K - 1, C/G]
    g = g.reshape(batch, frames, groups, -1).transpose(2, 0, 1, 3)  # [G, B, T, D/G]
    product = lambda k: jnp.einsum("gbtc,gbtd->cgd", padded[:, :, k : k + frames], g)
    return dx, jnp.stack([product(k) for k in range(taps)]).reshape(kernel.shape)


_grouped.defvjp(
    lambda x, kernel, groups: (_grouped_plain(x, kernel, groups), (x, kernel)), _grouped_backward
)
