"""From waveform to frames: seven convolutions, or MFCC, one frame every 20 ms.

Shapes: B batch, S samples, T frames, C channels.
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinosr_jax.model import layers
from dinosr_jax.model.convolutions import strided_conv
from dinosr_jax.model.mfcc import mfcc

Array = jax.Array
ConvLayers = Sequence[tuple[int, int, int]]  # (channels, kernel, stride) of each convolution
FrontEnd = Literal["conv", "mfcc"]

# A TPU moves whole tiles, here of 8 utterances and 128 channels: 11 utterances would cost as much
# as 16. Cut into 8 pieces each, any number of them fills its tiles.
_PIECES = 8


def num_frames(num_samples, conv_layers: ConvLayers):
    """Number of frames that the feature encoder makes of a number of samples.

    `num_samples` is an int or an integer array; the result, of the same type, is 0 where the audio
    is shorter than the receptive field. `conv_layers` has (channels, kernel, stride) of each
    convolution.
    """
    for _, kernel, stride in conv_layers:
        num_samples = (num_samples - kernel) // stride + 1
    if isinstance(num_samples, int):
        return max(num_samples, 0)
    return num_samples.clip(0)


def receptive_field(conv_layers: ConvLayers) -> tuple[int, int]:
    """Receptive field and hop of a frame, in samples: (400, 320) for the published network."""
    field, hop = 1, 1
    for _, kernel, stride in conv_layers:
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


class ConvBlock(nn.Module):
    """Convolution without bias or padding, LayerNorm over channels in float32, exact GELU."""

    channels: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, T, C] to [B, (T - kernel) // stride + 1, channels]."""
        shape = (self.kernel, x.shape[-1], self.channels)
        # kaiming_normal_; jax's he_normal is a truncated normal
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, shape)
        kernel = layers.place(kernel.astype(x.dtype))  # whole: x is cut by the batch alone
        x = layers.place(strided_conv(x, kernel, stride=self.stride), "batch")
        return layers.LayerNorm(activate=True, name="layer_norm")(x)


class FeatureEncoder(nn.Module):
    """The convolutional front end (paper section 3.1; fairseq ConvFeatureExtractionModel).

    With `front_end` 'mfcc', MFCC without parameters in its place: the one entry of `conv_layers`
    is (coefficients, window, hop).
    """

    conv_layers: ConvLayers
    dtype: jnp.dtype = jnp.float32
    front_end: FrontEnd = "conv"

    @nn.compact
    def __call__(self, waveforms: Array) -> Array:
        """Encodes waveforms [B, S] float32, 16 kHz, normalised per utterance.

        Returns:
          [B, T, C] in `dtype`; MFCC, which are not normalised yet, in float32.
        """
        if self.front_end == "mfcc":
            ((coefficients, window, hop),) = self.conv_layers
            sizes = {"num_coefficients": coefficients, "window": window, "hop": hop}
            return layers.place(mfcc(waveforms.astype(jnp.float32), **sizes), "batch")
        frames = num_frames(waveforms.shape[1], self.conv_layers)
        pieces = _PIECES if layers.platform() == "tpu" and frames else 1
        x = _cut_waveforms(waveforms, self.conv_layers, pieces=pieces)
        x = x[..., None].astype(self.dtype)  # [B * pieces, samples of a piece, 1]
        for i, (channels, kernel, stride) in enumerate(self.conv_layers):
            x = ConvBlock(channels, kernel, stride, name=f"conv_{i}")(x)
        if pieces > 1:
            x = x.reshape(len(waveforms), -1, x.shape[-1])[:, :frames]
            x = layers.place(x, "batch")
        return x


def _cut_waveforms(waveforms: Array, conv_layers: ConvLayers, *, pieces: int) -> Array:
    """Cuts waveforms [B, S] into [B * pieces, samples of a piece], of equally many frames each.

    Neighbours overlap, and zeros follow the last where the frames cannot be dealt equally. The
    frames of the pieces of a waveform, one after the other, are its own, and then those of the
    zeros.
    """
    if pieces == 1:
        return waveforms
    field, hop = receptive_field(conv_layers)
    frames = -(-num_frames(waveforms.shape[1], conv_layers) // pieces)
    needed = field + (frames * pieces - 1) * hop
    x = jnp.pad(waveforms, ((0, 0), (0, max(needed - waveforms.shape[1], 0))))
    size = field + (frames - 1) * hop
    starts = range(0, frames * pieces * hop, frames * hop)
    return jnp.stack([x[:, at : at + size] for at in starts], axis=1).reshape(-1, size)
